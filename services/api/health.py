"""Monitoring: liveness, readiness and Prometheus metrics."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from services.api.dependencies import Context, ContextDep
from services.api.errors import JsonResponse
from services.api.v1 import schemas
from services.core.db import database
from services.core.jobs import queries

if TYPE_CHECKING:
    from services.api.readiness import Readiness

router = APIRouter()


@router.get("/livez", response_model=schemas.Alive)
async def livez() -> Any:
    """The process answers."""
    return schemas.Alive()


@router.get("/readyz", response_model=schemas.Ready, responses={503: {"model": schemas.Ready}})
async def readyz(request: Request) -> Response:
    """200 if a submission would be accepted and rendered. Redis may be unreachable: it carries only wake-ups."""
    readiness: Readiness = request.app.state.readiness
    ready = await readiness.answer()
    return JsonResponse(ready.model_dump(), 503 if ready.status == "failing" else 200)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(context: ContextDep) -> Response:
    """Metrics in Prometheus' format, read from the database at each request, for one request at a time."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures(context))
    text = await anyio.to_thread.run_sync(generate_latest, registry, limiter=context.figures)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


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
        silent = max((worker.silent for worker in fleet if worker.state not in ("starting", "stopped")), default=0.0)
        yield _gauge("presswork_worker_silent_seconds", "The longest silence of a worker.", [], {(): silent})


def _gauge(name: str, text: str, labels: list[str], values: dict[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for place, value in values.items():
        family.add_metric(list(place), value)
    return family
