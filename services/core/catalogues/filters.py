"""The filters that a template may use, each bounded: what goes in, what comes out, and what it would make on the way.

The library limits neither; `replace` alone could make four gigabytes of two texts of 64 KiB. Filters that read the
clock (`date`) or make no text for people (`base64_encode`) are left out.
"""

from collections.abc import Callable
from decimal import Decimal
from functools import wraps
from typing import Any

from liquid.undefined import Undefined

from services.core.items import cells
from services.core.model.errors import PressworkError

TEXT_LIMIT = 16_384  # characters
LIST_LIMIT = 200
_NUMBER_LIMIT = 2**128
_MATHS = frozenset(
    {
        "abs", "at_most", "at_least", "ceil", "divided_by", "floor", "minus", "plus", "round", "times", "modulo",
    }
)  # fmt: skip
NAMES = _MATHS | {
    "append", "capitalize", "downcase", "lstrip", "prepend", "remove", "remove_first", "remove_last", "replace",
    "replace_first", "replace_last", "slice", "split", "upcase", "strip", "rstrip", "squish", "strip_html",
    "strip_newlines", "truncate", "truncatewords", "join", "first", "last", "concat", "map", "reverse", "sort",
    "sort_natural", "sum", "where", "reject", "uniq", "compact", "size", "default",
}  # fmt: skip


class LimitReached(PressworkError):
    """A template makes more than it may."""


def bounded(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which raises LimitReached before it takes or makes too much."""

    @wraps(apply)
    def run(value: Any, *arguments: Any, **options: Any) -> Any:
        given = [value, *arguments]
        for one in given:
            check(one)
        if name in _MATHS:
            given = [_number(one) for one in given]
        elif name == "replace" and len(given) > 1:
            text, old, new = (str(one) for one in (*given, "")[:3])
            _check_length(len(text) + text.count(old) * len(new))
        elif name == "join" and isinstance(value, list | tuple):
            between = str(arguments[0]) if arguments else " "
            _check_length(len(value) * len(between))
        found = apply(*given, **options)
        check(found)
        return found

    return run


def check(value: Any) -> None:
    """Raises LimitReached for a value that no template may hold."""
    if issubclass(type(value), Undefined | bool):  # isinstance would ask the unknown field, which raises
        return
    if isinstance(value, str):
        _check_length(len(value))
    elif isinstance(value, int):
        if abs(value) > _NUMBER_LIMIT:
            raise LimitReached("it makes a number of more than 38 digits")
    elif isinstance(value, list | tuple | range | dict):
        if len(value) > LIST_LIMIT:
            raise LimitReached(f"it handles a list of more than {LIST_LIMIT} entries")
        if isinstance(value, list | tuple):
            _check_length(sum(len(one) for one in value if isinstance(one, str | list | tuple | dict)))


def _check_length(length: int) -> None:
    if length > TEXT_LIMIT:
        raise LimitReached(f"it makes a text of more than {TEXT_LIMIT:,} characters")


def _number(value: Any) -> Any:
    """A text that shows a number, and a decimal, as a number that the library's filters take."""
    if issubclass(type(value), str):
        number = cells.as_number(value)
        return value if number is None else number
    if issubclass(type(value), Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
