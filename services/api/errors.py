"""Error answers: one envelope, a table of codes, and the handlers that map exceptions to them.

Whoever asks for `application/problem+json` by Accept gets the same error as a problem of RFC 9457.
"""

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.core.model import errors, strict_json
from services.core.model.errors import InvalidSubmission, PressworkError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
RETRY_SECONDS = "2"
PROBLEM = "application/problem+json"

# The first class that matches decides. An outage shows only the docstring; the log has the details.
CODES: list[tuple[type[PressworkError], int, str]] = [
    (errors.NotFound, 404, "not_found"),
    (errors.MissingScope, 403, "missing_scope"),
    (errors.TenantSuspended, 403, "tenant_suspended"),
    (errors.NotOperator, 403, "not_operator"),
    (errors.IdempotencyConflict, 422, "idempotency_key_reused"),
    (errors.IdempotencyGone, 410, "idempotency_key_gone"),
    (errors.IdempotencyBusy, 409, "idempotency_key_in_use"),
    (errors.Conflict, 409, "conflict"),
    (errors.DatabaseUnavailable, 503, "database_away"),
    (errors.StoreUnavailable, 503, "store_away"),
    (errors.PolicyUnavailable, 503, "policy_away"),
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


class ErrorResponse(JsonResponse):
    """An error in OpenAI's envelope, or as a problem."""

    def __init__(self, status: int, error: dict[str, Any], headers: dict[str, str] | None) -> None:
        super().__init__({"error": error}, status, {"Vary": "Accept", **(headers or {})})
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _asks_for_problem(scope):
            fields = {name: value for name, value in self._error.items() if name not in ("message", "type")}
            title, detail = HTTPStatus(self.status_code).phrase, self._error["message"]
            problem = {"type": "about:blank", "title": title, "status": self.status_code, "detail": detail, **fields}
            self.body = self.render(problem)
            self.headers["Content-Type"], self.headers["Content-Length"] = PROBLEM, str(len(self.body))
        await super().__call__(scope, receive, send)


def envelope(
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> ErrorResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return ErrorResponse(status, {"message": message, "type": kind, "param": param, "code": code, **more}, headers)


def install(app: FastAPI) -> None:
    """Installs the handlers of all known errors. RequestMiddleware answers unexpected exceptions."""
    handlers: dict[Any, Callable[[Request, Any], Response]] = {
        PressworkError: _presswork_error,
        errors.QuotaExceeded: _over_quota,
        ApiError: _refused,
        SubmissionError: _refused_submission,
        RequestValidationError: _invalid_parameter,
        HTTPException: _http_exception,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def parameter_status(request: Request) -> int:
    """The status of a wrong query parameter, which the class of the route decides (`turns.py`)."""
    return getattr(request.scope["route"], "WRONG_PARAMETER", 422)


def _presswork_error(request: Request, error: PressworkError) -> Response:
    for kind, status, code in CODES:
        if isinstance(error, kind):
            if status == 404:
                return envelope(status, code, _absent(str(error), request.path_params))
            if status < 500:
                return envelope(status, error.code if isinstance(error, errors.Conflict) else code, str(error))
            log.warning("outage", extra={"code": code, "error": str(error)})
            return envelope(status, code, f"{kind.__doc__} Try again.", headers={"Retry-After": RETRY_SECONDS})
    raise error


def _absent(message: str, asked: dict[str, Any]) -> str:
    """`There is no such job.` with the id that the address names."""
    noun = message.removeprefix("There is no such ").removesuffix(".")
    name = {"image": "index", "model": "name", "schedule": "schedule"}.get(noun, f"{noun}_id")
    return f"There is no {noun} {strict_json.describe(str(asked[name]))}." if name in asked else message


def _over_quota(_request: Request, error: errors.QuotaExceeded) -> Response:
    """429 if it helps to wait. What is more than the quota itself allows is refused for good."""
    if error.retry_seconds is None:
        return envelope(422, "quota_exceeded", str(error))
    return envelope(429, "quota_exceeded", str(error), headers={"Retry-After": str(error.retry_seconds)})


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
    status = parameter_status(request)
    return envelope(status, "invalid_parameter", f"{name} is {found}; it must be {allowed}.", name)


def _http_exception(request: Request, error: HTTPException) -> Response:
    """Unknown routes and methods."""
    if error.status_code == 404:
        rest = "" if request.url.path.startswith("/v1/") else "; those of jobs, files and batches begin with /v1/"
        return envelope(404, "unknown_route", f"There is nothing at this address{rest}.")
    if error.status_code == 405:
        allow = ", ".join(sorted(_methods(request)))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allow})
        return envelope(405, "method_not_allowed", f"This address takes {allow}.", headers={"Allow": allow})
    return envelope(error.status_code, "invalid_request", "The request cannot be understood.")


def _methods(request: Request) -> set[str]:
    """The methods of the routes with exactly this path, or else of those whose pattern matches. Every address takes
    OPTIONS, and HEAD if it takes GET."""
    path = request.scope["path"]
    found = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    exact = [route for route in found if route.path == path]
    methods = {method for route in exact or found for method in route.methods or ()}
    return methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())


def _asks_for_problem(scope: Scope) -> bool:
    """Whether Accept names problems, with no lower quality than plain JSON."""
    accepted: dict[str, float] = {}
    for value in (value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"):
        for entry in value.lower().split(","):
            media, *parameters = (part.strip() for part in entry.split(";"))
            quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
            accepted[media] = float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0
    return accepted.get(PROBLEM, 0.0) > 0 and accepted[PROBLEM] >= accepted.get("application/json", 0.0)
