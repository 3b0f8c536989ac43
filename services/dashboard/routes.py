"""The route class of pages: its handlers take turns by tenant as the API's do, and people read its errors as a page."""

import functools
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response

from services.api.errors import RETRY_SECONDS, ApiError
from services.core import logs
from services.core.model.errors import (
    Conflict,
    MissingScope,
    NotFound,
    PressworkError,
    QuotaExceeded,
    TenantSuspended,
    Unavailable,
)
from services.dashboard import rendering
from services.dashboard.access import SignedOut, Visitor

log = logging.getLogger(__name__)


class PageRoute(APIRoute):
    """Runs each synchronous handler in a slot of the tenant's; a handler names its context `context` and whoever is
    signed in `visitor`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint if inspect.iscoroutinefunction(endpoint) else _in_turn(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except SignedOut as error:
                return _to_sign_in(request, error.back)
            except NotFound as error:
                return rendering.trouble(request, 404, "Not here", str(error))
            except MissingScope as error:
                return rendering.trouble(request, 403, "Not allowed", str(error))
            except TenantSuspended as error:
                return rendering.trouble(request, 403, "Suspended", str(error))
            except QuotaExceeded as error:
                headers = {} if error.retry_seconds is None else {"Retry-After": str(error.retry_seconds)}
                return rendering.trouble(request, 429, "Over a quota", str(error), headers)
            except Conflict as error:
                return rendering.trouble(request, 409, "Not now", str(error))
            except Unavailable as error:
                headers = {"Retry-After": RETRY_SECONDS}
                return rendering.trouble(request, 503, "Out of reach", f"{type(error).__doc__} Try again.", headers)
            except ApiError as error:
                return rendering.trouble(request, error.status, "Refused", str(error), error.headers)
            except RequestValidationError as error:
                name = error.errors()[0]["loc"][-1]
                return rendering.trouble(request, 400, "Refused", f"{name} in the address is not what it takes.")
            except (ClientDisconnect, HTTPException, PressworkError):  # which the application answers
                raise
            except Exception:
                log.exception("page failed")
                what = f"Something went wrong in the server; it has been logged as {logs.request_id.get()}."
                return rendering.trouble(request, 500, "This failed", what)

        return handled


def _to_sign_in(request: Request, back: str) -> Response:
    address = rendering.address(request, f"/sign-in?next={quote(back, safe='/')}")
    if "hx-request" in request.headers:  # htmx would put the page into a part of this one
        return Response(status_code=401, headers={"HX-Redirect": address})
    return RedirectResponse(address, 303, {"Cache-Control": "no-store"})


def _in_turn(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def run(**values: Any) -> Any:
        visitor = values.get("visitor")
        tenant = visitor.tenant if isinstance(visitor, Visitor) else None
        return await values["context"].requests.run(tenant, functools.partial(handler, **values))

    return run
