"""The first page: whether all is well, what runs, what has failed, and the newest pictures."""

import math
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request

from services.api.dependencies import Context, ContextDep
from services.api.v1.schemas import Ready
from services.core.fleet import workers
from services.core.jobs import listing, queries, rates
from services.core.model.states import FINAL_JOB_STATES, ImageState, JobState
from services.dashboard import access, reading, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
UNFINISHED = tuple(sorted(set(JobState) - FINAL_JOB_STATES - {JobState.DRAFT}))
_MOST = 100  # jobs in progress that are listed, and that the stream of events tells about
_FAILED = 5
_PICTURES = 12
_OF_A_JOB = 4
_FROM_JOBS = 8


@dataclass(frozen=True, slots=True)
class Overview:
    """What the page shows. `is_all`: `live` are all the jobs that have not finished."""

    live: list[reading.Shown]
    is_all: bool
    failed: list[reading.Shown]
    pictures: list[tuple[str, queries.ImageView]]
    fleet: list[workers.Worker]
    is_empty: bool
    rates: rates.Rates

    @property
    def waiting(self) -> int:
        return sum(job.counts["queued"] for job in self.live)

    @property
    def rendering(self) -> int:
        return sum(job.counts["rendering"] for job in self.live)

    @property
    def rate(self) -> float:
        return math.fsum(job.view.rate for job in self.live)

    @property
    def eta(self) -> float | None:
        """When all is done, if that is known of each job that is not paused."""
        ends = [job.view.eta_seconds for job in self.live if not job.view.paused]
        return None if None in ends else max((end for end in ends if end is not None), default=None)


@router.get("/")
async def show_overview(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    ready = await request.app.state.readiness.answer()
    found = await context.requests.run(visitor.tenant, _read, context, visitor.tenant)
    values = {"found": found, "troubles": _troubles(ready, found), "ready": ready}
    return rendering.page(request, "overview.html", visitor=visitor, **values)


def _read(context: Context, tenant: int) -> Overview:
    everything = listing.Filter()
    unfinished = listing.Filter(states=UNFINISHED)
    with context.database.begin(tenant) as connection:
        live = listing.page(connection, tenant, unfinished, order="newest", place=None, limit=_MOST)
        newest = listing.page(connection, tenant, everything, order="newest", place=None, limit=_FROM_JOBS)
        failed = listing.page(connection, tenant, everything, order="failed_first", place=None, limit=_FAILED)
        measured = rates.rates(connection, tenant)
        pictures: list[tuple[str, queries.ImageView]] = []
        for job in newest.jobs:
            if job.counts["done"] and len(pictures) < _PICTURES:
                some = queries.images(connection, tenant, job.id, state=ImageState.DONE, after=-1, limit=_OF_A_JOB)
                pictures += [(reading.Shown(job).id, image) for image in some or []]
    return Overview(
        reading.shown(context, live.jobs),
        live.more is None,
        [reading.Shown(job) for job in failed.jobs if job.counts["failed"]],
        pictures[:_PICTURES],
        [worker for worker in _fleet(context) if worker.silent < workers.LIVE_SECONDS],
        not newest.jobs,
        measured,
    )


def _fleet(context: Context) -> list[workers.Worker]:
    with context.database.begin_system() as connection:  # as the system: claims are of all tenants
        return workers.listed(connection)


def _troubles(ready: Ready, found: Overview) -> list[str]:
    """What needs a person, in sentences."""
    troubles = [check.message for check in ready.checks.values() if check.status != "ok"]
    sick = [worker for worker in found.fleet if worker.state in ("sick", "crashed")]
    troubles += [f"The device {worker.device} on {worker.host} is {worker.state}." for worker in sick]
    is_served = any(worker.state in ("ready", "busy", "starting") for worker in found.fleet)
    if found.waiting and not is_served:
        troubles.append(f"{found.waiting:,} images wait and no worker is up: start one.")
    return troubles
