"""Numbers of bytes as people write and read them: kB, MB, GB and TB are powers of 1,000, KiB to TiB powers of 1,024."""

import re
from decimal import Decimal

_UNITS = {
    "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30, "TB": 10**12, "TiB": 2**40,
}  # fmt: skip
_BY_LETTERS = {unit.lower(): factor for unit, factor in _UNITS.items()}
# In groups of three digits or without groups: "1,5GB" is no 15 GB.
_SIZE = re.compile(r"((?:[0-9]{1,3}(?:[,_][0-9]{3}){1,12}|[0-9]{1,40})(?:\.[0-9]{1,20})?) ?([a-zA-Z]{0,3})")


def parse(text: str) -> int:
    """The bytes of "500GB", "1.5 TiB" or "2000". Raises ValueError unless it is a whole number of them."""
    match = _SIZE.fullmatch(text.strip())
    factor = None if match is None else _BY_LETTERS.get(match[2].lower() or "b")
    if match is None or factor is None:
        raise ValueError("no number of bytes")
    found = Decimal(re.sub("[,_]", "", match[1])) * factor
    if found != int(found):
        raise ValueError("part of a byte")
    return int(found)


def exact(count: int) -> str:
    """A number that somebody chose, without rounding: in the unit in which it has the fewest digits."""
    found = [(count // size, unit) for unit, size in _UNITS.items() if count % size == 0 and len(unit) > 1]
    number, unit = min(found, key=lambda one: one[0], default=(count, "B"))
    return f"{number:,} {unit}" if count else "0 B"


def rounded(count: float, beside: int | None = None) -> str:
    """To two or three digits; in binary units where the limit `beside` it is told in these."""
    is_binary = beside is not None and exact(beside).endswith("iB")
    step, units = (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if is_binary else (1000, ("B", "kB", "MB", "GB", "TB"))
    amount = float(count)
    for unit in units[:-1]:
        if amount < step:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= step
    return f"{amount:.1f} {units[-1]}"
