"""A table's cells as the fields of a request: texts become numbers and objects, and no number becomes another one."""

import datetime as dt
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, get_origin

from services.core.model import requests, strict_json
from services.core.model.body import whole

_KINDS = {
    name: get_origin(given.annotation) or given.annotation for name, given in requests.ImageRequest.model_fields.items()
}
WHOLE_FIELDS = {name for name, kind in _KINDS.items() if kind is int}
NUMBER_FIELDS = {name for name, kind in _KINDS.items() if kind is float}
OBJECT_FIELDS = {name for name, kind in _KINDS.items() if kind is dict}  # in a format without objects: JSON as text
_FREE_TEXT = {"prompt", "negative_prompt"}
_WHOLE = re.compile(r"([+-]?[0-9]{1,30})(?:\.0*|,00?)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
# A decimal comma, as spreadsheets of many countries write it. With three digits behind it, it might separate thousands.
_COMMA = re.compile(r"[+-]?[0-9]+,(?![0-9]{3}$)[0-9]+", re.ASCII)
_ERROR = re.compile(r"#(?:N/A|NV|[A-Z0-9/ÄÖÜÉ]+[!?])")


class BadCell(Exception):
    """A cell that cannot be what its field needs."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        self.code, self.field = code, field
        super().__init__(message)


def fields(given: Mapping[str, Any], limits: Mapping[str, int | None], *, is_typed: bool) -> dict[str, Any]:
    """The cells of a row as fields. `limits`: from where on a column of floats may have rounded a whole number.

    A program that has no null in a column of numbers writes NaN. Raises BadCell."""
    if limits:
        _check_digits(given, limits)
    found = {}
    for name, value in given.items():
        if (isinstance(value, float) and math.isnan(value)) or (
            isinstance(value, str) and value.isspace() and name not in _FREE_TEXT
        ):
            continue
        if isinstance(value, str) and value[0] == "#" and is_error(value):
            raise BadCell("spreadsheet_error", f"{name} is {value}, an error of the spreadsheet.", name)
        found[name] = _field(name, value, is_typed=is_typed)
    return found


def metadata(given: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row as metadata: texts, numbers, true and false as they stand, times as ISO texts, and what else
    a format has as JSON. An empty cell, NaN and an error of the spreadsheet are left out. Raises BadCell."""
    found = {}
    for name, cell in given.items():
        value = _scalar(name, cell)
        if value is None or value == "" or (isinstance(value, str) and (value.isspace() or is_error(value))):
            continue
        if not (isinstance(value, float) and math.isnan(value)):
            found[name] = value
    return found


def _scalar(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Decimal):
        return number(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return as_text(value)
    if isinstance(value, bytes):
        raise BadCell("wrong_type", f"{name} holds bytes, which metadata cannot; leave it out with --metadata.", name)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def is_error(text: str) -> bool:
    """Whether it is what a spreadsheet shows for a formula that failed, such as #N/A."""
    return _ERROR.fullmatch(text) is not None


def as_number(text: str) -> int | float | None:
    """The number that a text shows, as spreadsheets of any country write it. None: it shows none."""
    word = text.strip()
    if found := _WHOLE.fullmatch(word):
        return int(found[1])
    if _COMMA.fullmatch(word):
        return float(word.replace(",", "."))
    return float(word) if _NUMBER.fullmatch(word) else None


def parsed(name: str, text: str) -> object:
    """A field's text as the number or object that the field needs. Any other text is returned unchanged, and the
    server reports it."""
    word = text.strip()
    if name in OBJECT_FIELDS:
        try:
            return strict_json.loads(word.encode())
        except (strict_json.BadJson, UnicodeEncodeError):
            return text
    if name in WHOLE_FIELDS and (found := _WHOLE.fullmatch(word)):
        return int(found[1])
    if name in NUMBER_FIELDS and _COMMA.fullmatch(word):
        return float(word.replace(",", "."))
    return float(word) if name in NUMBER_FIELDS and _NUMBER.fullmatch(word) else text


def number(value: Decimal) -> int | float:
    """The decimal, digit for digit. Raises BadCell if JSON has no such number."""
    if value == value.to_integral_value():
        return int(value)
    if Decimal(repr(float(value))) == value:
        return float(value)
    raise BadCell("lost_digits", f"{value} has more digits than a number in JSON keeps; store the column as text.")


def as_text(value: Any) -> str:
    """What a spreadsheet shows for a cell: TRUE, 3 for 3.0, 2024-01-31 for a day."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        return value.date().isoformat()
    return "" if value is None else str(whole(value))


def _field(name: str, value: Any, *, is_typed: bool) -> Any:
    if isinstance(value, Decimal):
        value = number(value) if name in WHOLE_FIELDS | {"custom_id"} else float(value)
    if name in WHOLE_FIELDS:
        value = whole(value)
    elif is_typed and name not in NUMBER_FIELDS:
        value = as_text(value)
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        return value
    if name in _FREE_TEXT:
        return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
    return parsed(name, value if name in OBJECT_FIELDS else value.strip())


def _check_digits(given: Mapping[str, Any], limits: Mapping[str, int | None]) -> None:
    """Raises BadCell for a whole number in a column of floats that may have been rounded to it."""
    for name in given.keys() & (WHOLE_FIELDS | {"custom_id"}):
        value, limit = given[name], limits.get(name)
        if limit is not None and isinstance(value, float) and abs(value) >= limit:
            message = (
                f"{name} is {value:.0f} in a column of floats, which rounds whole numbers from {limit:,} on; "
                "store the column as integers, decimals or text."
            )
            raise BadCell("lost_digits", message, name)
