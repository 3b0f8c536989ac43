"""The base of the models of bodies: strict about types, and open to every spelling that means the same.

So a request is read alike whether it comes as JSON, as a line, in a file or from a table: null leaves an optional field
out, 1.0 is the whole number 1, CRLF in a text is a line break. What could mean two things is refused.
"""

from collections.abc import Mapping
from types import UnionType
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler

_NULL = {"type": "null"}
EXACT = 2**53  # from here on a float may stand for another whole number than the one that was written


class Body(BaseModel):
    """A body's fields. `DIGITS`: texts for which a whole number is taken as its digits. `NULL_IS_ABSENT` False: null
    might mean "remove it", and is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")
    DIGITS: ClassVar[frozenset[str]] = frozenset()
    NULL_IS_ABSENT: ClassVar[bool] = True

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> Self:
        return super().model_validate(_meant(cls, obj), **how)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Documents for callers that an optional field may be null, and that a name may be a number."""
        found = handler(core_schema)
        schema = handler.resolve_ref_schema(found)
        properties: dict[str, Any] = schema.get("properties", {})
        for name, allowed in properties.items():
            forms = [allowed, *([{"type": "integer"}] if name in cls.DIGITS else [])]
            is_open = cls.NULL_IS_ABSENT and name not in schema.get("required", ())
            if handler.mode == "validation" and is_open and _NULL not in allowed.get("anyOf", ()):
                forms.append(_NULL)
            if len(forms) > 1:
                outside = {key: allowed.pop(key) for key in ("default", "title", "description") if key in allowed}
                properties[name] = {"anyOf": forms, **outside}
        return found


def whole(value: Any) -> Any:
    """The whole number that a float certainly stands for; any other value is returned unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < EXACT else value


def with_defaults(defaults: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, and the defaults of those that are left out or null."""
    return {**defaults, **{name: value for name, value in fields.items() if value is not None or name not in defaults}}


def _meant(model: type[Body], value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    fields = model.model_fields
    return {
        name: _as_field(fields[name].annotation, given, name in model.DIGITS) if name in fields else given
        for name, given in value.items()
        if given is not None or name not in fields or fields[name].is_required() or not model.NULL_IS_ABSENT
    }


def _as_field(kind: Any, given: Any, digits: bool) -> Any:
    if isinstance(kind, UnionType):  # a field that may be None
        kind = next(form for form in get_args(kind) if form is not type(None))
    if kind is int:
        return whole(given)
    if kind is str:
        number = whole(given)
        if digits and type(number) is int:
            return str(number) if abs(number) < 10**128 else number
        return given.replace("\r\n", "\n") if isinstance(given, str) else given
    return _meant(kind, given) if isinstance(kind, type) and issubclass(kind, Body) else given
