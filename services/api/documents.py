"""Reading a small JSON body: an object with known fields, checked by a model of it."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from services.api import bodies
from services.api.bodies import Format
from services.api.errors import Refused
from services.core import strict_json
from services.core.settings import Settings

_LIMIT = 1 << 20
_KINDS = {"missing": "missing_field", "extra_forbidden": "unknown_field"}


class Document(BaseModel):
    """A body's fields. What is allowed in each is its description."""

    model_config = ConfigDict(strict=True, extra="forbid")


Kind = TypeVar("Kind", bound=Document)


async def read_object(request: Request, settings: Settings, *, optional: bool = False) -> dict[str, Any]:
    """The body as an object; an empty one if there is none and it is optional. Raises Refused."""
    if optional and not request.headers.get("content-length", "0").strip("0") and not _chunked(request):
        return {}
    if bodies.body_format(request) is not Format.JSON:
        raise Refused(415, "unsupported_media_type", "Content-Type must be application/json, in UTF-8.")
    async with bodies.received(request, settings, Format.JSON, most=_LIMIT) as spool:
        try:
            value = strict_json.loads(spool.read())
        except strict_json.BadJson as error:
            raise Refused(400, error.code, str(error)) from None
    if not isinstance(value, dict):
        raise Refused(400, "wrong_type", f"The body is {strict_json.describe(value)}; it must be an object.")
    return value


async def read(request: Request, settings: Settings, kind: type[Kind], *, optional: bool = False) -> Kind:
    """The body as `kind`. Raises Refused with the first thing that is wrong: its field, what was found, what may be."""
    value = await read_object(request, settings, optional=optional)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _refused(kind, error) from None


def schema(kind: type[Document], *, required: bool = True) -> dict[str, Any]:
    """The `requestBody`, for OpenAPI: FastAPI cannot know it."""
    return {"required": required, "content": {"application/json": {"schema": kind.model_json_schema()}}}


def _chunked(request: Request) -> bool:
    return "transfer-encoding" in request.headers


def _refused(kind: type[Document], error: ValidationError) -> Refused:
    entry = error.errors(include_url=False)[0]
    names = [str(part) for part in entry["loc"]]
    code = _KINDS.get(entry["type"], "invalid_value")
    if code == "unknown_field":
        shown = strict_json.describe(names[-1])
        known = ", ".join(sorted(kind.model_fields))
        return Refused(400, code, f"There is no field {shown}; there are: {known}.", param=strict_json.place(*names))
    field = kind.model_fields.get(names[0]) if names else None
    allowed = (field.description if field else None) or "as the documentation says"
    found = "missing" if code == "missing_field" else strict_json.describe(entry["input"])
    param = strict_json.place(*(part for part in entry["loc"] if part != "[key]"))
    return Refused(400, code, f"{param} is {found}; it must be {allowed}.", param=param)
