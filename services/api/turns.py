"""Route classes whose handlers take turns by tenant: `APIRouter(route_class=TenantRoute)`."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from fastapi.routing import APIRoute


class TenantRoute(APIRoute):
    """Runs each synchronous handler in one of the slots for requests, once its body has been received.

    Without this it would run in a pool of threads that all tenants share without turns. Handlers name their context
    `context` and their tenant `tenant`; one without a tenant, for signed links, has a turn as if it were one tenant.
    """

    WRONG_PARAMETER: ClassVar[int] = 422  # the status of a wrong query parameter

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint if inspect.iscoroutinefunction(endpoint) else _in_turn(endpoint), **options)


class OpenAIRoute(TenantRoute):
    """A route for the stock `openai` client, which raises BadRequestError for a 400."""

    WRONG_PARAMETER = 400


def _in_turn(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def run(**values: Any) -> Any:
        call = functools.partial(handler, **values)
        return await values["context"].requests.run(values.get("tenant"), call)

    return run
