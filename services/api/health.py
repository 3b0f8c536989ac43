"""Monitoring: liveness, readiness and Prometheus metrics."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from services.api.errors import JsonResponse
from services.api.v1 import schemas
from services.core.metrics import registry

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
async def metrics() -> Response:
    """What this web server counts of itself, in Prometheus' format. The queue's figures are the leading scheduler's."""
    return Response(generate_latest(registry.REGISTRY), media_type=CONTENT_TYPE_LATEST)
