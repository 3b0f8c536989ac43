"""Scores of pictures: which scorers ship, and what a filter such as `sharpness>=0.3` means.

It holds names only and imports no scorer. A scorer has the name of the score that it gives.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.core.model.errors import PressworkError

SHIPPED = {
    "uniform": "worker.scorers.uniform",
    "sharpness": "worker.scorers.sharpness",
    "phash": "worker.scorers.phash",
    "clip": "worker.scorers.clip",
}
USUAL = ("uniform", "sharpness", "phash")
PHASH = "phash"  # it gives 64 bits instead of a number; they are compared, never ordered
GROUP = "presswork.scorers"  # of the entry points by which other distributions bring scorers
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
MOST_RANGES = 8
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
_CONDITION = re.compile(rf"({NAME.pattern})\s*(>=|<=)\s*({_NUMBER})", re.ASCII)
_ORDER = re.compile(rf"-?{NAME.pattern}", re.ASCII)


class NotUnderstood(PressworkError):
    """A filter of scores, or an order, that says nothing."""

    def __init__(self, message: str, *, is_filter: bool = True) -> None:
        super().__init__(message)
        self.is_filter = is_filter


@dataclass(frozen=True, slots=True)
class Range:
    """Images whose score of that name is from `low` to `high`, both included. An image without the score is not
    among them."""

    name: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, slots=True)
class Order:
    """By the score of that name, then by index; images without it are left out."""

    name: str
    descending: bool

    @classmethod
    def parse(cls, text: str) -> "Order":
        """`sharpness`: the lowest first; `-sharpness`: the highest first. Raises NotUnderstood."""
        if not _ORDER.fullmatch(text) or text.lstrip("-") == PHASH:
            message = f"{text[:60]!r} is no score to sort by; write NAME, or -NAME for the highest first."
            raise NotUnderstood(message, is_filter=False)
        return cls(text.lstrip("-"), text.startswith("-"))

    def __str__(self) -> str:
        return f"{'-' if self.descending else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Images that are in every range, in that order."""

    ranges: tuple[Range, ...]
    order: Order


def ranges(conditions: Iterable[str]) -> tuple[Range, ...]:
    """The ranges that conditions such as `sharpness>=0.3` make together, by name as they first come.

    Raises:
        NotUnderstood: it names the condition.
    """
    found: dict[str, Range] = {}
    for text in conditions:
        match = _CONDITION.fullmatch(text.strip())
        if match is None or match[1] == PHASH or not math.isfinite(float(match[3])):
            raise NotUnderstood(f"{text[:60]!r} is no filter of scores; write NAME>=NUMBER or NAME<=NUMBER.")
        name, sign, number = match[1], match[2], float(match[3])
        before = found.get(name, Range(name))
        low, high = (max(before.low, number), before.high) if sign == ">=" else (before.low, min(before.high, number))
        found[name] = Range(name, low, high)
    if len(found) > MOST_RANGES:
        raise NotUnderstood(f"There are filters of {len(found)} scores; at most {MOST_RANGES} go together.")
    return tuple(found.values())


def wanted(conditions: Iterable[str], sort: str | None) -> Wanted | None:
    """What a list is asked for; None: nothing of scores. Without `sort`, by the first condition's score, from the end
    that it asks for. Raises NotUnderstood."""
    found = ranges(conditions)
    if sort:
        return Wanted(found, Order.parse(sort))
    if not found:
        return None
    return Wanted(found, Order(found[0].name, descending=found[0].high == math.inf))


def holds(found: "dict[str, float | None] | None", wished: Iterable[Range]) -> bool:
    """Whether an image with these scores is in every range."""
    values = [((found or {}).get(one.name), one) for one in wished]
    return all(value is not None and one.low <= value <= one.high for value, one in values)


def hex_of(phash: int | None) -> str | None:
    """A perceptual hash as 16 hexadecimal digits."""
    return None if phash is None else f"{phash % 2**64:016x}"
