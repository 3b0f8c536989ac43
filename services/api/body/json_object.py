"""Small bodies of one JSON object, read strictly and checked against a model; `json_stream` reads large ones."""

from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from services.api.body import streaming
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError, SubmissionError
from services.core.model import requests, strict_json
from services.core.model.errors import InvalidSubmission

SMALL_BYTES = 64 << 10
DOCUMENT_BYTES = 1 << 20
_UNREADABLE = {"invalid_encoding", "invalid_json"}  # codes of a body that is not JSON
M = TypeVar("M", bound=BaseModel)


def read(body: bytes, example: str = "images") -> dict[str, Any]:
    """Reads the body as an object. Errors name `example` as one of its fields. Raises ApiError."""
    body = body.removeprefix(strict_json.BYTE_ORDER_MARK)
    try:
        value = strict_json.loads(body)
    except strict_json.BadJson as error:
        raise refusal(error, is_empty=not body.strip()) from None
    if not isinstance(value, dict):
        raise not_an_object(value, example)
    return value


def refusal(error: strict_json.BadJson, *, is_empty: bool) -> ApiError:
    """422, since an empty body is not malformed JSON: its fields are missing."""
    return ApiError(400 if error.code in _UNREADABLE and not is_empty else 422, error.code, str(error))


def not_an_object(value: object, example: str) -> ApiError:
    shown = strict_json.describe(value)
    return ApiError(422, "wrong_type", f"The body is {shown}; it must be an object with the field {example}.")


def require_json(request: Request) -> None:
    """Raises ApiError with 415 unless Content-Type is JSON."""
    if streaming.body_format(request) is not streaming.Format.JSON:
        raise ApiError(415, "unsupported_media_type", "Content-Type must be application/json, in UTF-8.")


async def _small(request: Request, context: ContextDep) -> bytes:
    return await _received(request, context, SMALL_BYTES)


async def _document(request: Request, context: ContextDep) -> bytes:
    return await _received(request, context, DOCUMENT_BYTES)


async def _received(request: Request, context: Context, limit: int) -> bytes:
    require_json(request)
    async with streaming.received(request, context.settings, streaming.Format.JSON, limit) as spool:
        return spool.read()


async def _small_or_none(request: Request, context: ContextDep) -> bytes:
    if "content-type" not in request.headers and request.headers.get("content-length", "0") == "0":
        if "transfer-encoding" in request.headers:
            require_json(request)
        return b"{}"
    return await _small(request, context)


Small = Annotated[bytes, Depends(_small)]
Document = Annotated[bytes, Depends(_document)]
SmallOrNone = Annotated[bytes, Depends(_small_or_none)]


def parse(model: type[M], body: bytes, allowed: dict[str, str] = requests.ALLOWED) -> M:
    """The body as that model. Raises ApiError, or SubmissionError with every problem."""
    value = read(body, next(iter(model.model_fields)))
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = requests.problems(error, value, allowed=allowed)
        raise SubmissionError(InvalidSubmission(problems), "index") from None
