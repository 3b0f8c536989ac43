"""The figures of the installation: what waits, what it will take, who renders. One program reads them for all, the
scheduler that leads, and nobody else: they are not to be added up over programs.

What a look costs is bounded: it reads at most SEGMENTS segments that wait, CLAIMS claims and JOBS jobs, however many
images there are. What was not looked at is taken to be like what was.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns, revisions
from services.core.db.statements import statement
from services.core.fleet import workers
from services.core.jobs import estimates, lanes, queries
from services.core.jobs.backlog import SHAPE_OF_CLAIM
from services.core.jobs.lanes import Lane
from services.core.metrics.bounded import LONGEST
from services.core.metrics.definitions import OTHER
from services.core.model.requests import PRIORITIES
from services.core.model.specs import Shape
from services.core.tenants import usage

SEGMENTS = 10_000
OF_EACH = 1_000  # segments of a model, priority and tenant
CLAIMS = 5_000
JOBS = 10_000
MODELS = 100
LANES = 50
ASSUMED_SECONDS = 10.0  # for an image of a model of which nothing was rendered yet
Figures = dict[str, dict[tuple[str, ...], float]]  # by metric and labels

_RENDERING = statement("installation.rendering")(f"""
SELECT {columns.shape("s")}, sum(c.images) AS images
FROM (SELECT id, images, job_ids FROM claims WHERE state = 'open' LIMIT :most) c
{SHAPE_OF_CLAIM}
GROUP BY {columns.shape("s")}
""")  # noqa: S608  our own text
_NAMES = statement("installation.names")("SELECT name, revision FROM models WHERE revision = ANY(:revisions)")
_MODELS = statement("installation.models")("SELECT DISTINCT name FROM models ORDER BY name LIMIT :most")
_HELD = statement("installation.held")(f"""
SELECT name FROM tenants t
WHERE state <> 'active' OR max_device_seconds_per_day <= {usage.SECONDS_TODAY}
""")  # noqa: S608  our own text
_QUEUED = statement("installation.queued")("SELECT coalesce(sum(images_queued), 0) FROM tenant_usage")
_JOBS = statement("installation.jobs")("""
SELECT state, count(*) AS jobs FROM (
  SELECT state FROM jobs WHERE finished_at IS NULL AND deleted_at IS NULL LIMIT :most
) live GROUP BY state
""")
_DEADLINES = statement("installation.deadlines")("""
SELECT state, count(*) AS runs FROM (
  SELECT CASE WHEN missed_at IS NOT NULL THEN 'missed'
         WHEN warned_at IS NOT NULL THEN 'at_risk' ELSE 'on_time' END AS state
  FROM schedule_runs WHERE finished_at IS NULL AND deadline_at IS NOT NULL LIMIT :most
) live GROUP BY state
""")
_FAILING = statement("installation.failing_webhooks")("""
SELECT count(*) FROM (
  SELECT FROM webhook_endpoints WHERE state = 'enabled' AND failures > 0 LIMIT :most
) failing
""")
_RETENTION = statement("installation.retention")("""
SELECT kind, state, count(*) AS things FROM (
  SELECT kind, CASE WHEN look_again_at > now() THEN 'held' ELSE 'due' END AS state FROM retention_work LIMIT :most
) waiting GROUP BY kind, state
""")
_AUDIT = statement("installation.audit")("""
SELECT missing, damaged, requeued, orphans, deleted, extract(epoch FROM now() - finished_at) AS age
FROM storage_audits WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 1
""")
_MARK = statement("installation.mark")("SELECT refusal IS NOT NULL FROM storage_mark")
_DELETIONS = statement("installation.tenant_deletions")(
    "SELECT count(*) FROM tenant_deletions WHERE finished_at IS NULL"
)
_FOUND = ("missing", "damaged", "requeued", "orphans", "deleted")


def read(connection: Connection) -> Figures:
    """All of them, by metric. Takes a system transaction: they are sums over all tenants, and name none."""
    found = lanes.waiting(connection, 0, all_tenants=True, most=SEGMENTS, of_each=OF_EACH)
    looked_at = sum(lane.images for lane in found.lanes)
    factor = 1.0
    if found.more and looked_at:
        factor = max(1.0, float(connection.execute(_QUEUED).scalar_one()) / looked_at)
    rendering = {columns.read_shape(row): int(row.images) for row in connection.execute(_RENDERING, {"most": CLAIMS})}
    models = connection.execute(_MODELS, {"most": MODELS}).scalars()
    held = set(connection.execute(_HELD).scalars())
    return {
        **_work(models, found.lanes, held, factor, *_seconds(connection, rendering)),
        "presswork_queue_looked_at_ratio": {(): 1 / factor},
        **_fleet(queries.fleet(connection)),
        "presswork_jobs": {(row.state,): row.jobs for row in connection.execute(_JOBS, {"most": JOBS})},
        "presswork_deadlines": dict.fromkeys((("on_time",), ("at_risk",), ("missed",)), 0.0)
        | {(row.state,): row.runs for row in connection.execute(_DEADLINES, {"most": JOBS})},
        "presswork_webhooks_failing": {(): connection.execute(_FAILING, {"most": JOBS}).scalar_one()},
        **_storage(connection),
        "presswork_schema_behind": {(): _behind(connection)},
    }


def _seconds(connection: Connection, rendering: Mapping[Shape, int]) -> tuple[dict[str, float], dict[str, float]]:
    """Of what is being rendered: images and accelerator-seconds, by model."""
    models = sorted({shape.model_revision for shape in rendering})
    measured = estimates.Measured(connection, models)
    names = {row.revision: row.name for row in connection.execute(_NAMES, {"revisions": models})}
    images: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for shape, count in rendering.items():
        name, rate = names.get(shape.model_revision, shape.model_revision), measured.rate(shape)
        _add(images, name, count)
        _add(seconds, name, count * (ASSUMED_SECONDS if rate is None else rate.seconds))
    return images, seconds


def _work(
    models: Iterable[str],
    waiting: Sequence[Lane],
    held_tenants: Container[str],
    factor: float,
    rendering: Mapping[str, float],
    rendering_seconds: Mapping[str, float],
) -> Figures:
    sized = [
        (lane, lane.images * factor, _of_lane(lane) * factor) for lane in waiting if lane.tenant not in held_tenants
    ]
    held = [lane for lane in waiting if lane.tenant in held_tenants]
    backlog = dict.fromkeys(models, 0.0) | dict(rendering_seconds)
    for lane, _, seconds in sized:
        _add(backlog, lane.model, seconds)
    model = _Largest(backlog, MODELS)
    sizes: dict[tuple[str, str, str], float] = {}
    for lane, _, seconds in sized:
        _add(sizes, _place(lane, model), seconds)
    shown = _Largest(sizes, LANES)
    names = ("images", "seconds", "oldest_seconds", "unserved_images", "unmeasured_images", "held_images")
    found: Figures = {f"presswork_queue_{name}": {} for name in names}
    images_, seconds_, oldest, unserved, unmeasured, kept = found.values()
    for name in backlog:  # zeros, so that an alert that was true is seen to end
        unserved[model(name),] = unmeasured[model(name),] = kept[model(name),] = 0
    for lane in held:
        _add(kept, (model(lane.model),), lane.images * factor)
    for lane, images, seconds in sized:
        place = _place(lane, model)
        key = place if shown.has(place) else (*place[:2], OTHER)
        _add(images_, key, images)
        _add(seconds_, key, seconds)
        oldest[place[:2]] = max(oldest.get(place[:2], 0.0), lane.oldest_seconds)
        _add(unserved, place[:1], 0 if lane.workers else images)
        _add(unmeasured, place[:1], images if lane.device_seconds is None else 0)
    leased: dict[tuple[str, ...], float] = {}
    total: dict[tuple[str, ...], float] = {}
    for name, count in rendering.items():
        _add(leased, (model(name),), count)
    for name, seconds in backlog.items():
        _add(total, (model(name),), seconds)
    return found | {"presswork_rendering_images": leased, "presswork_backlog_seconds": total}


class _Largest:
    """The `most` largest of what has a size; a name of another is OTHER."""

    def __init__(self, sizes: Mapping[Any, float], most: int) -> None:
        self._names = set(sorted(sizes, key=lambda name: (-sizes[name], name))[:most])

    def has(self, name: object) -> bool:
        return name in self._names

    def __call__(self, name: str) -> str:
        return name[:LONGEST] if name in self._names else OTHER


def _place(lane: Lane, model: _Largest) -> tuple[str, str, str]:
    shape = lane.shape
    text = f"{shape.width}x{shape.height} {shape.steps_done} steps{' guided' if shape.guided else ''}"
    return model(lane.model), _PRIORITY[lane.priority], text


def _of_lane(lane: Lane) -> float:
    return lane.images * ASSUMED_SECONDS if lane.device_seconds is None else lane.device_seconds


def _fleet(rows: Iterable[Any]) -> Figures:
    counts: dict[tuple[str, ...], float] = {}
    silent = 0.0
    for row in rows:
        if row.state in workers.GONE:
            continue
        state = "idle" if row.state == "ready" else row.state
        if row.silent > workers.LIVE_SECONDS:
            state = "silent"
        elif row.drained and state == "idle":
            state = "drained"
        if row.state != "starting":
            silent = max(silent, row.silent)
        _add(counts, (row.model, workers.kind(row.device), state), 1)
    largest = _Largest(counts, MODELS)
    shown: dict[tuple[str, ...], float] = {}
    for place, count in counts.items():
        model, device, state = place
        _add(shown, (model[:LONGEST], device[:LONGEST], state) if largest.has(place) else (OTHER, OTHER, state), count)
    return {"presswork_accelerators": shown, "presswork_worker_silent_seconds": {(): silent}}


def _storage(connection: Connection) -> Figures:
    """Retention, the audits of the store and the deletions of tenants."""
    waiting = {(kind, state): 0.0 for kind in ("payloads", "objects", "records") for state in ("due", "held")}
    rows = connection.execute(_RETENTION, {"most": JOBS})
    last = connection.execute(_AUDIT).one_or_none()
    return {
        "presswork_retention_waiting": waiting | {(row.kind, row.state): row.things for row in rows},
        "presswork_storage_audit_images": {(name,): getattr(last, name) for name in _FOUND} if last else {},
        "presswork_storage_audit_age_seconds": {(): float(last.age)} if last else {},
        "presswork_storage_restore_unaccepted": {(): int(connection.execute(_MARK).scalar_one())},
        "presswork_tenants_being_deleted": {(): connection.execute(_DELETIONS).scalar_one()},
    }


def _behind(connection: Connection) -> int:
    found, known = revisions.of(connection), revisions.known()
    return known.index(found) if found in known else -1


def _add(sums: dict[Any, float], key: object, value: float) -> None:
    sums[key] = sums.get(key, 0) + value


_PRIORITY = {number: word for word, number in PRIORITIES.items()}
