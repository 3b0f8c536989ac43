"""POST /v1/images/edits: as /v1/images/generations, from a picture in the form.

The picture becomes a file of purpose `vision` that belongs to the job. Other requests name an input picture in their
field `image`.
"""

from typing import Any

from fastapi import APIRouter, Request

from services.api import dependencies
from services.api.authentication import Tenant
from services.api.body import multipart, streaming
from services.api.body.multipart import Form
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.openai import generations, schemas
from services.api.turns import OpenAIRoute
from services.api.v1 import schemas as v1
from services.core.batches import line_format
from services.core.batches.line_format import Body
from services.core.files.pictures import InvalidPicture
from services.core.items import cells
from services.core.model import requests

router = APIRouter(route_class=OpenAIRoute)
_MOST_FIELDS, _MOST_FILES = 32, 16
_WORDS = {"true": True, "false": False}
_WHOLE = ("partial_images",)
_MASKED = "There is no mask here: the whole picture is redrawn, by as much as strength says."


def _schema() -> dict[str, Any]:
    one = requests.ImageRequest.model_json_schema()["properties"]
    for name in ("custom_id", "metadata"):
        one.pop(name)
    one["image"] = {"type": "string", "format": "binary", "description": "A PNG, JPEG or WebP."}
    one["n"] = {"type": "integer", "minimum": 1, "maximum": line_format.IMAGES_PER_REQUEST}
    one["response_format"] = {"type": "string", "enum": list(line_format.RESPONSE_FORMATS)}
    one["user"] = {"type": "string", "maxLength": 512, "description": "the sender's own"}
    one["response_format"]["description"] = "url or b64_json; without it, both"
    for name, field in one.items():
        field.setdefault("description", requests.ALLOWED.get(name, ""))
    schema = {"type": "object", "required": ["image", "prompt"], "properties": one}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


@router.post(
    "/images/edits",
    response_model=schemas.Pictures,
    responses={202: {"model": v1.Job}},
    openapi_extra={"requestBody": _schema(), "parameters": [generations.PREFER]},
)
async def edit_image(request: Request, context: ContextDep, tenant: Tenant) -> Any:
    """Redraws a picture up to ten times and waits for the images."""
    key = streaming.idempotency_key(request)
    preference = generations.preferred(request)
    limit = context.settings.max_input_bytes
    async with multipart.received(request, "image", limit, _MOST_FIELDS, _MOST_FILES, {"mask": _MASKED}) as form:
        body = _read(form)
        job_id = await context.submissions.run(tenant, _submit, context, tenant, form, body, key)
    return await generations.answered(request, context, tenant, job_id, body.response_format, preference, key)


def _read(form: Form) -> Body:
    """The form's texts as the values that a body in JSON would have. Raises ApiError."""
    fields: dict[str, Any] = {}
    for name, text in form.fields.items():
        number = cells.as_number(text) if name in _WHOLE else None
        fields[name] = cells.parsed(name, text) if number is None else number
        if name == "stream":
            fields[name] = _WORDS.get(text, text)
    body, problems = line_format.read_body(fields, "")
    if problems:
        raise ApiError(400, problems[0].code, problems[0].message, param=problems[0].param)
    if "custom_id" in body.fields:
        raise ApiError(400, "unknown_field", "custom_id belongs to files of requests.", param="custom_id")
    return body


def _submit(context: Context, tenant: int, form: Form, body: Body, key: str | None) -> int:
    pictures = dependencies.pictures(context, tenant)
    try:
        body.fields["image"] = pictures.keep_bytes(form.file.read())
    except InvalidPicture as error:
        raise ApiError(400, "invalid_image", str(error), param="image") from None
    return generations.submit(context, tenant, body, key, pictures)
