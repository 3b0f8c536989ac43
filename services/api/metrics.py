"""What a web server counts: its answers by the template of their route, and how long they took."""

from functools import cache

from prometheus_client import ProcessCollector

from services.core.metrics import registry
from services.core.metrics.bounded import Bounded

REQUESTS = registry.counter("presswork_http_requests_total")
SECONDS = registry.histogram("presswork_http_request_seconds")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ROUTE = "none"
_routes = Bounded(500)


@cache
def show() -> None:
    """Adds to the process's registry what is read when it is asked for."""
    registry.REGISTRY.register(registry.Machine("web"))
    ProcessCollector(registry=registry.REGISTRY)


def answered(route: str, method: str, status: int, seconds: float) -> None:
    """`route` is a template, empty if none was found; `seconds` are those until the answer began."""
    route, method = _routes(route or NO_ROUTE), method if method in METHODS else "other"
    REQUESTS.labels(route, method, f"{status // 100}xx" if status else "none").inc()
    SECONDS.labels(route, method).observe(seconds)
