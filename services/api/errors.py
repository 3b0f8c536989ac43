"""Error answers: one envelope, a table of codes, and the handlers that map exceptions to them."""

import json
import logging
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response

from services.core.model import errors
from services.core.model.errors import InvalidSubmission, PressworkError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
RETRY_SECONDS = "2"

# The first class that matches decides. An outage shows only the docstring; the log has the details.
CODES: list[tuple[type[PressworkError], int, str]] = [
    (errors.NotFound, 404, "not_found"),
    (errors.IdempotencyConflict, 422, "idempotency_key_reused"),
    (errors.IdempotencyGone, 410, "idempotency_key_gone"),
    (errors.IdempotencyBusy, 409, "idempotency_key_in_use"),
    (errors.Conflict, 409, "conflict"),
    (errors.DatabaseUnavailable, 503, "database_away"),
    (errors.StoreUnavailable, 503, "store_away"),
    (errors.Unavailable, 503, "unavailable"),
]


class ApiError(PressworkError):
    """The request was refused."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.status, self.code, self.param, self.headers = status, code, param, headers or {}
        super().__init__(message)


class SubmissionError(PressworkError):
    """A submission was refused. Each problem has its `line` (NDJSON), `index` (JSON) or `chunk` (of a draft)."""

    def __init__(self, refused: InvalidSubmission, place: Literal["line", "index", "chunk"], status: int = 422) -> None:
        self.problems, self.more, self.place, self.status = refused.problems, refused.more, place, status
        super().__init__(str(refused))


class JsonResponse(Response):
    """JSON in ASCII, so that an answer may quote anything that a client sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()


def envelope(
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> JsonResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    content = {"error": {"message": message, "type": kind, "param": param, "code": code, **more}}
    return JsonResponse(content, status, headers)


def install(app: FastAPI) -> None:
    """Installs the handlers of all known errors. RequestMiddleware answers unexpected exceptions."""
    handlers: dict[Any, Callable[[Request, Any], Response]] = {
        PressworkError: _presswork_error,
        ApiError: _refused,
        SubmissionError: _refused_submission,
        RequestValidationError: _invalid_parameter,
        HTTPException: _http_exception,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _presswork_error(_request: Request, error: PressworkError) -> Response:
    for kind, status, code in CODES:
        if isinstance(error, kind):
            if status < 500:
                return envelope(status, error.code if isinstance(error, errors.Conflict) else code, str(error))
            log.warning("outage", extra={"code": code, "error": str(error)})
            return envelope(status, code, f"{kind.__doc__} Try again.", headers={"Retry-After": RETRY_SECONDS})
    raise error


def _refused(_request: Request, error: ApiError) -> Response:
    return envelope(error.status, error.code, str(error), error.param, error.headers)


def _refused_submission(_request: Request, error: SubmissionError) -> Response:
    def entry(problem: Problem) -> dict[str, Any]:
        return {
            error.place: problem.line,
            "param": problem.param,
            "code": problem.code,
            "message": problem.message,
        }

    first = error.problems[0]
    return envelope(
        error.status,
        first.code,
        f"line {first.line}: {error}" if first.line is not None and error.place == "line" else str(error),
        first.param,
        errors=[entry(problem) for problem in error.problems],
        more=error.more,
    )


def _invalid_parameter(request: Request, error: RequestValidationError) -> Response:
    """FastAPI checks parameters alone. What is allowed is the parameter's description."""
    entry = error.errors()[0]
    name = str(entry["loc"][-1])
    dependant = request.scope["route"].dependant
    fields = {field.alias: field.field_info for field in (*dependant.query_params, *dependant.path_params)}
    allowed = fields[name].description if name in fields else "what the documentation allows"
    found = json.dumps(str(entry.get("input"))[:40])
    return envelope(422, "invalid_parameter", f"{name} is {found}; it must be {allowed}.", name)


def _http_exception(request: Request, error: HTTPException) -> Response:
    """Unknown routes and methods."""
    if error.status_code == 404:
        rest = "" if request.url.path.startswith("/v1/") else "; those of jobs, files and batches begin with /v1/"
        return envelope(404, "unknown_route", f"There is nothing at this address{rest}.")
    if error.status_code == 405:
        methods = sorted(_methods(request))
        return envelope(
            405,
            "method_not_allowed",
            f"This address takes {', '.join(methods)}.",
            headers={"Allow": ", ".join(methods)},
        )
    return envelope(error.status_code, "invalid_request", "The request cannot be understood.")


def _methods(request: Request) -> set[str]:
    """The methods of the routes with exactly this path, or else of those whose pattern matches."""
    path = request.scope["path"]
    found = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    exact = [route for route in found if route.path == path]
    return {method for route in exact or found for method in route.methods or ()}
