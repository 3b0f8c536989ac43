"""Monitoring: liveness, readiness and Prometheus metrics."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from services.api.dependencies import Context, ContextDep
from services.api.errors import JsonResponse
from services.api.v1 import schemas
from services.core import notify
from services.core.db import database
from services.core.jobs import queries
from services.core.model.errors import PressworkError, Unavailable, UnsuitableDatabase

log = logging.getLogger(__name__)
router = APIRouter()
FRESH_SECONDS = 1.0


@router.get("/livez", response_model=schemas.Alive)
async def livez() -> Any:
    """The process answers."""
    return schemas.Alive()


@router.get("/readyz", response_model=schemas.Ready, responses={503: {"model": schemas.Ready}})
def readyz(request: Request) -> Response:
    """200 if a submission would be accepted and rendered. Redis may be unreachable: it carries only wake-ups."""
    readiness: Readiness = request.app.state.readiness
    ready = readiness.look()
    return JsonResponse(ready.model_dump(), 503 if ready.status == "failing" else 200)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(context: ContextDep) -> Response:
    """Metrics in Prometheus' format, read from the database at each request."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures(context))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Readiness:
    """Runs the checks at most once a second: the route takes no key, so anyone may call it at any rate."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._seen: tuple[float, schemas.Ready] | None = None

    def look(self) -> schemas.Ready:
        with self._lock:
            if self._seen is None or time.monotonic() - self._seen[0] > FRESH_SECONDS:
                ready = self._look()
                self._seen = time.monotonic(), ready
            return self._seen[1]

    def _look(self) -> schemas.Ready:
        checks = {"database": self._database(), "store": self._store(), "redis": self._redis()}
        if checks["database"].status == "ok":
            checks |= self._model_and_worker()
        found = {check.status for check in checks.values()}
        status = "failing" if "failing" in found else "degraded" if "degraded" in found else "ok"
        return schemas.Ready.model_validate({"status": status, "checks": checks})

    def _database(self) -> schemas.Check:
        def check() -> None:
            for warning in database.assert_suitable(self._context.database):
                log.warning("%s", warning)

        return _checked("The database is reachable and suitable.", check)

    def _store(self) -> schemas.Check:
        return _checked("The object store is reachable.", self._context.store.check)

    def _redis(self) -> schemas.Check:
        if notify.redis_answers(self._context.settings.redis_url):
            return _ok("Redis answers.")
        return schemas.Check(
            status="degraded",
            message="Redis cannot be reached: workers find work on their own timer, a few seconds later.",
        )

    def _model_and_worker(self) -> dict[str, schemas.Check]:
        model = self._context.settings.model
        try:
            # As the system: this route takes no key, so there is no tenant.
            with self._context.database.begin_system() as connection:
                registered, worker_was_up = queries.readiness(connection, model)
        except Unavailable as error:
            log.warning("not ready", extra={"error": str(error)})
            return {"database": _failing((type(error).__doc__ or "").strip())}
        return {
            "model": _ok(f"The default model {model} is registered.")
            if registered
            else _failing(f"The default model {model} is not registered: start a worker that serves it."),
            "worker": _ok("A worker has been up.") if worker_was_up else _failing("No worker has been up yet."),
        }


class Figures(Collector):
    """Counts over all tenants. No label names a tenant or holds a prompt."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterator[GaugeMetricFamily]:
        # As the system: the figures are sums over all tenants.
        with self._context.database.begin_system() as connection:
            figures = list(self._read(connection))
        yield from figures

    def _read(self, connection: database.Connection) -> Iterator[GaugeMetricFamily]:
        """A new metric is one more `yield` here, of what a query of the package that it is about returns."""
        images, jobs, claims = queries.totals(connection)
        yield _gauge("presswork_images", "Images, by state.", ["state"], {(state,): n for state, n in images.items()})
        yield _gauge("presswork_jobs", "Jobs, by state.", ["state"], {(state,): n for state, n in jobs.items()})
        yield _gauge("presswork_open_claims", "Claims under lease.", [], {(): claims})
        fleet = queries.fleet(connection)
        workers: dict[tuple[str, ...], float] = {}
        for worker in fleet:
            place = (worker.model, worker.device, worker.state)
            workers[place] = workers.get(place, 0) + 1
        yield _gauge("presswork_workers", "Workers of the last five minutes.", ["model", "device", "state"], workers)
        silent = max((worker.silent for worker in fleet if worker.state != "stopped"), default=0.0)
        yield _gauge("presswork_worker_silent_seconds", "The longest silence of a worker.", [], {(): silent})


def _gauge(name: str, text: str, labels: list[str], values: dict[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for place, value in values.items():
        family.add_metric(list(place), value)
    return family


def _checked(sentence: str, check: Callable[[], object]) -> schemas.Check:
    """The check's answer. An outage shows only its kind; the log has the details."""
    try:
        check()
    except UnsuitableDatabase as error:
        return _failing(str(error))
    except Unavailable as error:
        log.warning("not ready", extra={"error": str(error)})
        return _failing((type(error).__doc__ or "").strip())
    except PressworkError as error:
        log.warning("not ready", extra={"error": str(error)})
        return _failing("It is unusable; the log says why.")
    return _ok(sentence)


def _ok(message: str) -> schemas.Check:
    return schemas.Check(status="ok", message=message)


def _failing(message: str) -> schemas.Check:
    return schemas.Check(status="failing", message=message)
