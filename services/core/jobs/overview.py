"""How it all goes for one tenant: what waits, who renders it, what needs a person, and the newest pictures.

Every read is bounded, however many images and jobs there are: it looks at so many jobs, and at their folded counts.
Functions take the tenant's transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection

from services.core.db import columns, leadership
from services.core.db.statements import statement
from services.core.fleet import serving
from services.core.jobs import estimates, failures, queries, rates
from services.core.jobs.failures import Cause
from services.core.jobs.queries import JobView
from services.core.jobs.rates import Rates
from services.core.model.specs import Shape

MOST_JOBS = 100  # of each state; what waits in more is not added up
JOBS_SHOWN = 10
PICTURES_SHOWN = 12
SHAPES_SHOWN = 5  # that nobody can render
LIVE_SECONDS = estimates.LIVE_SECONDS

# What is left of a job is divided among its shapes as in `estimates.ahead`.
_WORK = statement("overview.work")(f"""
WITH live AS MATERIALIZED (
  SELECT mine.id, mine.paused FROM unnest(CAST(:states AS text[])) AS wanted (state)
  CROSS JOIN LATERAL (
    SELECT id, paused FROM jobs WHERE jobs.state = wanted.state AND tenant_id = :tenant_id ORDER BY id LIMIT :most
  ) mine
)
SELECT live.id, live.paused, c.queued, c.rendering, {columns.shape("s")},
       (c.queued + c.rendering) * span / sum(span) OVER (PARTITION BY live.id) AS images
FROM live
CROSS JOIN LATERAL (SELECT queued, rendering FROM job_counts WHERE job_counts.job_id = live.id OFFSET 0) c
CROSS JOIN LATERAL (
  SELECT {", ".join(columns.SHAPE)}, greatest(high - low + 1, 1)::double precision AS span
  FROM segments WHERE segments.job_id = live.id ORDER BY id LIMIT 5
) s
""")  # noqa: S608  our own text
_MODELS = statement("overview.models")("SELECT name, revision FROM models WHERE revision = ANY(:revisions)")
# In a job images are claimed in order, so the newest pictures are among the last ones.
_PICTURES = statement("overview.pictures")(f"""
WITH looked_at AS MATERIALIZED (
  (SELECT id FROM jobs WHERE tenant_id = :tenant_id AND state = 'in_progress' ORDER BY id DESC LIMIT 10)
  UNION
  (SELECT id FROM jobs WHERE tenant_id = :tenant_id ORDER BY id DESC LIMIT 10)
), newest AS MATERIALIZED (
  SELECT r.* FROM looked_at CROSS JOIN LATERAL (
    SELECT job_id, index, finished_at, flagged FROM results WHERE results.job_id = looked_at.id
    ORDER BY results.index DESC LIMIT :limit
  ) r ORDER BY r.finished_at DESC, r.job_id DESC, r.index DESC LIMIT :limit
)
SELECT newest.*, p.custom_id, left(p.prompt, 300) AS prompt FROM newest
{columns.payload_of("newest")}
ORDER BY newest.finished_at DESC, newest.job_id DESC, newest.index DESC
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Issue:
    """Something that needs a person. `failing`: images cannot be rendered; `degraded`: some cannot, or later."""

    code: str
    status: Literal["degraded", "failing"]
    message: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The tenant's images that are not final, without those of paused jobs, of which so many wait, `paused`. Seconds
    are None if nothing was measured; `seconds` also if no live worker serves some of it. `more`: there are jobs that
    were not looked at."""

    jobs: int
    queued: int
    rendering: int
    paused: int
    device_seconds: float | None
    seconds: float | None
    more: bool


@dataclass(frozen=True, slots=True)
class Accelerators:
    """Live workers, each with one device, of all tenants. A drained one that is still busy counts as busy."""

    busy: int
    idle: int
    drained: int
    sick: int
    starting: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A done image; `prompt` is its beginning."""

    job_id: int
    index: int
    finished_at: datetime
    flagged: bool | None
    custom_id: str | None
    prompt: str


@dataclass(frozen=True, slots=True)
class Overview:
    """`jobs` are the newest ones under way, those in progress first; `failures` the causes of the last day."""

    issues: tuple[Issue, ...]
    rates: Rates
    waiting: Waiting
    accelerators: Accelerators
    jobs: tuple[JobView, ...]
    failures: tuple[Cause, ...]
    pictures: tuple[Picture, ...]


def overview(connection: Connection, tenant_id: int, *, names_hosts: bool = True) -> Overview:
    """All of it, in a fixed number of statements. `names_hosts`: the issues say where a worker runs."""
    values = {"tenant_id": tenant_id, "states": ["queued", "in_progress"], "most": MOST_JOBS}
    found = connection.execute(_WORK, values).all()
    work, paused = [row for row in found if not row.paused], {row.id: row.queued for row in found if row.paused}
    left: dict[str, float] = {}
    shapes: dict[Shape, float] = {}
    for row in work:
        left[row.model_revision] = left.get(row.model_revision, 0.0) + row.images
        shape = columns.read_shape(row)
        shapes[shape] = shapes.get(shape, 0.0) + row.images
    measured = estimates.Measured(connection, left)
    fleet = queries.fleet(connection)
    accelerators = _accelerators(fleet)
    return Overview(
        issues=(
            *_of_workers(accelerators, fleet, waiting=sum(left.values()) > 0, names_hosts=names_hosts),
            *_of_lanes(connection, left, measured.workers, any_live=accelerators.busy + accelerators.idle > 0),
            *_of_shapes(shapes, measured.serving),
            *_of_scheduler(connection),
        ),
        rates=rates.rates(connection, tenant_id),
        waiting=_waiting(work, paused, measured),
        accelerators=accelerators,
        jobs=tuple(queries.under_way(connection, tenant_id, JOBS_SHOWN)),
        failures=tuple(failures.of_day(connection, tenant_id)),
        pictures=tuple(pictures(connection, tenant_id)),
    )


def pictures(connection: Connection, tenant_id: int, limit: int = PICTURES_SHOWN) -> list[Picture]:
    """The newest pictures of the tenant's jobs in progress and of its newest jobs."""
    rows = connection.execute(_PICTURES, {"tenant_id": tenant_id, "limit": limit})
    return [Picture(*row) for row in rows]


def _waiting(work: Sequence[Any], paused: Mapping[int, int], measured: estimates.Measured) -> Waiting:
    jobs = {row.id: row for row in work}
    seconds: dict[str, float | None] = {}  # accelerator-seconds of each model; None: not known
    stuck = False  # nobody serves some of it
    for row in work:
        shape = columns.read_shape(row)
        rate, before = measured.rate(shape), seconds.get(row.model_revision, 0.0)
        stuck = stuck or (row.images > 0 and not measured.serving.of(shape))
        seconds[row.model_revision] = None if rate is None or before is None else before + rate.seconds * row.images
    known = [span for span in seconds.values() if span is not None]
    ends = [
        span / measured.workers[revision]
        for revision, span in seconds.items()
        if span is not None and measured.workers.get(revision)
    ]
    return Waiting(
        jobs=len(jobs),
        queued=sum(row.queued for row in jobs.values()),
        rendering=sum(row.rendering for row in jobs.values()),
        paused=sum(paused.values()),
        device_seconds=sum(known) if len(known) == len(seconds) else None,
        seconds=max(ends, default=0.0) if len(ends) == len(seconds) and not stuck else None,
        more=len(jobs) + len(paused) >= MOST_JOBS,
    )


def _accelerators(fleet: Iterable[Any]) -> Accelerators:
    live = [worker for worker in fleet if worker.silent <= LIVE_SECONDS]
    states = [worker.state for worker in live]
    drained = sum(worker.drained and worker.state == "ready" for worker in live)
    return Accelerators(
        busy=states.count("busy"),
        idle=states.count("ready") - drained,
        drained=drained,
        sick=states.count("sick"),
        starting=states.count("starting"),
    )


def _of_workers(
    accelerators: Accelerators, fleet: Sequence[Any], *, waiting: bool, names_hosts: bool
) -> Iterable[Issue]:
    if not accelerators.busy + accelerators.idle:
        if accelerators.starting:
            yield Issue("no_workers", "degraded", "No worker is ready yet; one is starting.")
        elif accelerators.drained:
            yield Issue("no_workers", "failing" if waiting else "degraded", "Every worker is drained: resume one.")
        else:
            yield Issue("no_workers", "failing" if waiting else "degraded", "No worker is running: start one.")
    live = {(worker.host, worker.device) for worker in fleet if worker.silent <= LIVE_SECONDS}
    for worker in fleet:
        name = f"{worker.host} {worker.device}".strip() if names_hosts else worker.device or "A device"
        if worker.state == "sick" and worker.silent <= LIVE_SECONDS:
            message = f"{name} is sick: it crashes or fails its test image, and renders nothing until that passes."
            yield Issue("device_sick", "degraded", message)
        elif worker.state in ("ready", "busy") and (worker.host, worker.device) not in live:
            message = f"The worker on {name} has not been heard of for {worker.silent:.0f} s: look at its process."
            yield Issue("worker_silent", "degraded", message)


def _of_lanes(
    connection: Connection, left: dict[str, float], workers: dict[str, int], *, any_live: bool
) -> Iterable[Issue]:
    """What waits for models that no live worker serves. Without any worker that is said once, by `_of_workers`."""
    unserved = {revision: images for revision, images in left.items() if images and not workers.get(revision)}
    if not unserved or not any_live:
        return
    found = connection.execute(_MODELS, {"revisions": list(unserved)})
    names = {row.revision: row.name for row in found}
    for revision, images in unserved.items():
        model = names.get(revision, f"the revision {revision}, which is no longer current,")
        message = f"{round(images):,} images wait for {model} and no worker serves it: start one, or cancel their jobs."
        yield Issue("unserved", "degraded", message)


def _of_shapes(left: dict[Shape, float], live: serving.Serving) -> Iterable[Issue]:
    """What waits for a model that is served, in a shape or class that no live worker can render."""
    lacking = [(shape, images) for shape, images in left.items() if round(images) and live.lacks(shape)]
    for shape, images in lacking[:SHAPES_SHOWN]:
        message = f"{round(images):,} images wait, and {serving.nobody(shape)}, or cancel their jobs."
        yield Issue("unserved", "degraded", message)


def _of_scheduler(connection: Connection) -> Iterable[Issue]:
    if not leadership.exists(connection):
        yield Issue("no_scheduler", "failing", "No scheduler is running: jobs do not finish until one is started.")
