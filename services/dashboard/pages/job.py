"""The page of a job."""

from typing import Any

from fastapi import APIRouter, Request

from services.api import dependencies
from services.api.dependencies import ContextDep
from services.core.events import queries as events
from services.core.exports import records
from services.core.exports.formats import FORMATS
from services.core.jobs import failures, job_rates, queries, shapes
from services.core.marks import marks
from services.core.model import ids
from services.core.tenants import usage
from services.dashboard import access, again, charts, reading, rendering
from services.dashboard.pages import actions
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_IMAGES = 24
_EVENTS = 200
_EXPORTS = 20
_PAST_THE_NEWEST = 2**63 - 1


@router.get("/jobs/{job_id}")
def show_job(request: Request, context: ContextDep, visitor: access.Signed, job_id: str) -> Any:
    visitor.require("view")
    number = ids.parse_job(job_id)
    job = reading.job(context, visitor.tenant, number)
    with context.database.read(visitor.tenant) as connection:
        images = queries.page_failed_first(connection, number, failed=True, after=-1, limit=_IMAGES)
        values: dict[str, Any] = {
            "marked": marks.counts(connection, visitor.tenant, number),
            "chart": charts.Chart(job_rates.of_job(connection, visitor.tenant, number), "span"),
            "shapes": shapes.of_job(connection, number),
            "waits": usage.waits(connection, visitor.tenant) if job.view.stands_still else [],
            "events": events.of_subject(connection, visitor.tenant, events.job(number), limit=_EVENTS),
            "causes": failures.counted(connection, number) if job.counts["failed"] else [],
            "exports": records.seen(connection, number, before=_PAST_THE_NEWEST, limit=_EXPORTS)
            if job.is_final
            else [],
        }
    return rendering.page(
        request,
        "job.html",
        visitor=visitor,
        job=job,
        images=images,
        score_names=sorted({name for image in images for name in image.scores or {}}),
        again=again.of_job(dependencies.base_url(context.settings, request), job.view),
        formats=list(FORMATS),
        actions=actions.of(job, visitor),
        export_id=records.public_id,
        here=f"/jobs/{job_id}",
        parent=None if job.view.retry_of is None else ids.public_job(job.view.retry_of),
        **values,
    )
