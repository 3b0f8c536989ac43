"""The types of metadata as columns of a table: one type a name, whatever the images' values are.

Whole numbers and floats are floats together; values of other kinds are text together. No value changes: a whole number
that a float does not hold makes the column text. As text a number is the same however it was written: 1e-05 is
0.00001, 1.0 is 1, and -0.0 is 0. In JSON it stays as it was submitted.
"""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal

from services.core.model.body import EXACT

Kind = Literal["bool", "whole", "long", "float", "text"]
PREFIX = "metadata."  # of a column's name, so that it is no field's
MOST = 256  # columns; with more names, metadata stand as JSON alone
TYPES = {"bool": "bool", "whole": "int64", "long": "int64", "float": "float64", "text": "string"}


def kind_of(value: Any) -> Kind | None:
    """None: null, which every type has."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "whole" if abs(value) <= EXACT else "long" if -(2**63) <= value < 2**63 else "text"
    return "float" if isinstance(value, float) else "text"


def joined(one: Kind, other: Kind) -> Kind:
    """The kind of a column that holds values of both."""
    if one == other:
        return one
    both = {one, other}
    if both == {"whole", "long"}:
        return "long"
    return "float" if both == {"whole", "float"} else "text"


def collect(found: dict[str, Kind], metadata: Mapping[str, Any] | None) -> None:
    """Adds one image's metadata to the kinds that were found so far."""
    for name, value in (metadata or {}).items():
        kind = kind_of(value)
        if kind is not None and found.get(name) != kind:
            found[name] = joined(found.get(name, kind), kind)


def columns(found: Mapping[str, Kind]) -> dict[str, Kind]:
    """The columns, by name; none if there would be too many."""
    return dict(sorted(found.items())) if len(found) <= MOST else {}


def text_of(value: Any) -> str:
    """A value as text, as it stands in columns of text and as filters compare it. Null: the empty text."""
    if isinstance(value, str) or value is None:
        return value or ""
    if isinstance(value, float):
        return plain(Decimal(repr(value)))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def plain(number: Decimal) -> str:
    """All digits of a finite number, without an exponent or a needless zero, as PostgreSQL's trim_scale writes it."""
    digits = f"{number:f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return "0" if digits == "-0" else digits


def cells(kinds: Mapping[str, Kind], metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """An image's cells, by the names of the columns; None where it has no such metadata."""
    given = metadata or {}
    return {PREFIX + name: _cell(kind, given.get(name)) for name, kind in kinds.items()}


def pyarrow_fields(kinds: Mapping[str, Kind], pa: Any) -> Iterable[tuple[str, Any]]:
    """The columns for a schema of pyarrow."""
    types = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}
    return [(PREFIX + name, types[TYPES[kind]]) for name, kind in kinds.items()]


def _cell(kind: Kind, value: Any) -> Any:
    if value is None or kind not in ("float", "text"):
        return value
    return float(value) + 0.0 if kind == "float" else text_of(value)  # -0.0 becomes 0.0
