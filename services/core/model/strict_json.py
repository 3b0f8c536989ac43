"""A strict JSON reader: UTF-8, finite numbers, no duplicate keys. Every defect is reported as a Problem. And the writer
of lines that every reader takes for one line."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from services.core.model.errors import PressworkError, Problem

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # RFC 8259 lets a reader ignore one before a whole text
_SPACE = re.compile(r"[ \t\n\r]*")
MAX_KEYS = 1_000
MAX_DEPTH = 32
MAX_SHOWN = 80  # characters of the input, in an error


class BadJson(PressworkError):
    """The text is not JSON that Presswork accepts."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)

    def problem(self, line: int | None = None) -> Problem:
        return Problem(self.code, str(self), None, line)


def loads(body: bytes) -> Any:
    """The value of one JSON text.

    Raises:
        BadJson: not UTF-8, not JSON, a number that is not finite, a duplicate key, too many keys in one object, or
            nested too deep.
    """
    try:
        text = body.decode("utf-8")
        value, end = scan(text, after_space(text, 0), MAX_DEPTH)
        if (end := after_space(text, end)) != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        raise BadJson("invalid_encoding", f"The text is not UTF-8: byte {error.start} is invalid.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise BadJson("invalid_json", f"The text is not JSON: {error.msg.lower()} at {where}.") from None
    return value


def after_space(text: str, at: int) -> int:
    """Where the white space that begins at `at` ends."""
    found = _SPACE.match(text, at)
    assert found is not None, "no space is also a match"
    return found.end()


def scan(text: str, start: int, max_depth: int) -> tuple[Any, int]:
    """The value that begins at `start` in a longer text, and where it ends.

    Raises:
        json.JSONDecodeError: it is not JSON, or the text ends within it.
        BadJson: as `loads` does.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise BadJson("invalid_json", "The text is nested too deep.") from None
    except ValueError:  # Python's own limit on the digits of an integer
        raise BadJson("invalid_number", "The text holds a number with thousands of digits.") from None
    if text.count("[", start, end) + text.count("{", start, end) > max_depth and _is_too_deep(value, max_depth):
        raise BadJson("invalid_json", "The text is nested too deep.")
    return value, end


def line(value: Mapping[str, Any]) -> str:
    """One line of readable JSON. Characters that some readers take for the end of a line are escaped."""
    text = _ENCODE(value)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029") + "\n"


def describe(value: object, limit: int = 40) -> str:
    """The value, in ASCII and shortened, for an error message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        shown = json.dumps(value[:limit])
        return shown if len(value) <= limit else f'{shown[:-1]}..." ({len(value):,} characters)'
    try:
        return json.dumps(value)[: limit + 24]
    except ValueError:
        return "a number with thousands of digits"


def place(*parts: object, prefix: str = "") -> str:
    """A path as errors name it: shortened, and quoting only plain names of the input."""
    shown = (
        str(part) if str(part).isascii() and re.fullmatch(r"[\w-]+", str(part)) else describe(part) for part in parts
    )
    return (prefix + ".".join(shown))[:MAX_SHOWN]


def _is_too_deep(value: object, max_depth: int) -> bool:
    level: list[Any] = [value]
    for _ in range(max_depth):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            if isinstance(child, dict | list)
        ]
    return bool(level)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise BadJson("too_many_keys", f"An object has {len(pairs):,} keys; {MAX_KEYS:,} are allowed.")
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadJson("duplicate_key", f"The key {describe(key)} appears twice in one object.")
            seen.add(key)
    return found


def _constant(word: str) -> NoReturn:
    raise BadJson("invalid_number", f"{word} is not a JSON number.")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadJson("invalid_number", f"The number {digits[:40]} is too large.")
    return value


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
