"""Bodies of the OpenAI-shaped routes: objects with known fields. Errors are 400, as OpenAI's client expects."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from services.api.body import json_object, streaming
from services.api.body.streaming import Format
from services.api.errors import ApiError
from services.core.model import strict_json, suggestions
from services.core.model.body import Body
from services.core.settings import Settings

LIMIT = 1 << 20
_KINDS = {"missing": "missing_field", "extra_forbidden": "unknown_field"}


class Document(Body):
    """A body's fields. A field's description says what is allowed in it."""


Kind = TypeVar("Kind", bound=Document)


async def read_object(request: Request, settings: Settings, example: str) -> dict[str, Any]:
    """Reads the body as an object. Errors name `example` as one of its fields. Raises ApiError."""
    json_object.require_json(request)
    async with streaming.received(request, settings, Format.JSON, max_bytes=LIMIT) as spool:
        try:
            return json_object.read(spool.read(), example)
        except ApiError as error:
            status = 400 if error.status == 422 else error.status
            raise ApiError(status, error.code, str(error), param=error.param) from None


async def read(request: Request, settings: Settings, kind: type[Kind]) -> Kind:
    """The body as `kind`. Raises ApiError with the first problem: the field, what was found, and what is allowed."""
    value = await read_object(request, settings, next(iter(kind.model_fields)))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _refused(kind, error) from None


def schema(kind: type[Document]) -> dict[str, Any]:
    """The `requestBody` for OpenAPI; FastAPI does not parse it."""
    return {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}


def _refused(kind: type[Document], error: ValidationError) -> ApiError:
    entry = error.errors(include_url=False)[0]
    names = [str(part) for part in entry["loc"]]
    code = _KINDS.get(entry["type"], "invalid_value")
    if code == "unknown_field":
        shown = strict_json.describe(names[-1])
        known = suggestions.meant(names[-1], kind.model_fields)
        others = f"did you mean {known}?" if known else f"there are: {', '.join(sorted(kind.model_fields))}."
        return ApiError(400, code, f"There is no field {shown}; {others}", param=strict_json.place(*names))
    field = kind.model_fields.get(names[0]) if names else None
    allowed = (field.description if field else None) or "as the documentation says"
    found = "missing" if code == "missing_field" else strict_json.describe(entry["input"])
    param = strict_json.place(*(part for part in entry["loc"] if part != "[key]"))
    return ApiError(400, code, f"{param} is {found}; it must be {allowed}.", param=param)
