"""Reads of jobs, images and workers for users. Each is one statement, so its result was true at one moment.

Reads for a tenant take its id and run in its transaction: `database.begin(tenant_id)`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, TextClause

from services.core import traces
from services.core.db import columns
from services.core.db.columns import COUNTS, Payload
from services.core.db.statements import statement
from services.core.fleet import drains
from services.core.marks.asked import Mark
from services.core.model.states import ImageState

# Whether a job's rate says how fast it is: there are 10 seconds and as many finished images behind it as are being
# rendered, and it was measured within the last minute, or the time that two claims of each worker take.
_MEASURED = """c.rate_seconds >= 10 AND c.rate > 0 AND c.rate * c.rate_seconds >= c.rendering
       AND abs(extract(epoch FROM now() - c.folded_at)) <= greatest(60, 2 * c.rendering / c.rate)"""
_JOB = f"""
SELECT j.id, j.state, j.paused, j.priority, j.total, j.labels, j.requests, j.parent_id, j.dedupe, j.embed_prompt,
       j.in_shards, j.traceparent, j.drawn_seeds, j.created_at, j.started_at, j.cancel_requested_at, j.finished_at,
       j.expires_at, j.stop_reason, j.retention, j.payloads_erased_at, j.objects_deleted_at, now() AS as_of,
       {columns.counts("c")}, c.reused, c.device_seconds,
       CASE WHEN {_MEASURED} THEN c.rate ELSE 0 END AS rate, c.rate_seconds
FROM jobs j JOIN job_counts c ON c.job_id = j.id
"""  # noqa: S608  our own text
_ONE_JOB = statement("queries.one_job")(_JOB + "WHERE j.tenant_id = :tenant_id AND j.id = :job_id")
_OWN = "tenant_id = :tenant_id AND id < :before"
_IN_STATE = f"{_OWN} AND state = :state"
# Selects the jobs of the page first, by an index, and then joins their counts.
_JOBS, _JOBS_IN_STATE = (
    statement(f"queries.jobs{name}")(
        _JOB.replace("FROM jobs j", f"FROM (SELECT * FROM jobs WHERE {own} ORDER BY id DESC LIMIT :limit) j")  # noqa: S608
        + "ORDER BY j.id DESC"
    )
    for name, own in (("", _OWN), ("_in_state", _IN_STATE))
)
_EACH_STATE = """
  SELECT mine.*, place FROM unnest(CAST(:states AS text[])) WITH ORDINALITY AS wanted (state, place)
  CROSS JOIN LATERAL (
    SELECT * FROM jobs WHERE jobs.state = wanted.state AND tenant_id = :tenant_id ORDER BY id DESC LIMIT :limit
  ) mine ORDER BY place, mine.id DESC LIMIT :limit
"""
_UNDER_WAY = statement("queries.under_way")(
    _JOB.replace("FROM jobs j", f"FROM ({_EACH_STATE}) j") + "ORDER BY j.place, j.id DESC"
)
_THESE_JOBS = statement("queries.these_jobs")(
    _JOB + "WHERE j.tenant_id = :tenant_id AND j.id = ANY(:ids) ORDER BY j.id DESC"
)
_ANY_JOBS = statement("queries.any_jobs")(_JOB + "WHERE j.id = ANY(:ids) AND j.deleted_at IS NULL")
# No index knows labels: so many jobs are looked at for one page.
_LABELLED, _LABELLED_IN_STATE = (
    statement(f"queries.labelled{name}")(f"""
WITH looked_at AS MATERIALIZED (
  SELECT id, labels FROM jobs WHERE {own} ORDER BY id DESC LIMIT :most
)
SELECT ARRAY(
    SELECT id FROM looked_at WHERE labels @> CAST(:labels AS jsonb) ORDER BY id DESC LIMIT :limit
  ) AS ids, CASE WHEN count(*) = :most THEN min(id) END AS reached
FROM looked_at
""")  # noqa: S608  our own text
    for name, own in (("", _OWN), ("_in_state", _IN_STATE))
)
LOOKED_AT = 10_000
UNDER_WAY = ["in_progress", "cancelling", "finalizing", "queued", "validating"]

_IMAGE = f"""
SELECT i.job_id, i.index, i.state, {columns.payload()},
       r.object_key, r.sha256, r.bytes, r.truncated, r.flagged, r.unknown_words, r.device, r.reproducibility_class,
       r.reused, r.render_seconds, r.finished_at, r.scores, r.phash, e.versions, f.code, f.message,
       m.mark, m.actor AS marked_by, m.at AS marked_at
FROM {{images}} i
{columns.payload_of("i", "{job}")}
LEFT JOIN LATERAL (SELECT * FROM results WHERE results.job_id = {{job}} AND results.index = i.index OFFSET 0) r ON true
LEFT JOIN engines e ON e.id = r.engine_id
LEFT JOIN LATERAL (
  SELECT code, message FROM failures WHERE i.state = 3 AND failures.job_id = {{job}} AND failures.index = i.index
  ORDER BY id DESC LIMIT 1
) f ON true
LEFT JOIN LATERAL (
  SELECT mark, actor, at FROM marks WHERE marks.job_id = {{job}} AND marks.index = i.index OFFSET 0
) m ON true
"""  # noqa: S608  our own text
# Selects the images of the page first and then joins the rest: joined first, it would be that of the whole job. Each
# state is found by an index that holds no other state, so that a page reads what it shows, wherever in the job that is.
# Partitions are compared with the value :job_id, never with another table's column: a value prunes them in the plan.
_AFTER = "job_id = :job_id AND index > :after"
_ALL = f"(SELECT * FROM images WHERE {_AFTER} ORDER BY index LIMIT :limit)"  # noqa: S608  our own text
_IN_STATES = {
    ImageState.QUEUED: """(
  SELECT queued.* FROM segments s CROSS JOIN LATERAL (
    SELECT * FROM images
    WHERE images.job_id = :job_id AND segment_id = s.id AND index > :after AND state = 0 ORDER BY index LIMIT :limit
  ) queued WHERE s.job_id = :job_id ORDER BY queued.index LIMIT :limit
)""",
    # OFFSET 0 hides the order that is wanted, by which the planner would rather read the whole job.
    ImageState.RENDERING: """(
  SELECT * FROM (SELECT * FROM images WHERE job_id = :job_id AND claim_id IS NOT NULL OFFSET 0) held
  WHERE index > :after ORDER BY index LIMIT :limit
)""",
    ImageState.DONE: """(
  SELECT done.* FROM results CROSS JOIN LATERAL (
    SELECT * FROM images WHERE images.job_id = :job_id AND images.index = results.index AND state = 2 OFFSET 0
  ) done WHERE results.job_id = :job_id AND results.index > :after ORDER BY results.index LIMIT :limit
)""",
    ImageState.FAILED: f"(SELECT * FROM images WHERE {_AFTER} AND state = 3 ORDER BY index LIMIT :limit)",  # noqa: S608
    ImageState.CANCELLED: f"(SELECT * FROM images WHERE {_AFTER} AND state = 4 ORDER BY index LIMIT :limit)",  # noqa: S608
}
_NOT_FAILED = " UNION ALL ".join(page for state, page in _IN_STATES.items() if state is not ImageState.FAILED)


def _page(name: str, images: str) -> TextClause:
    return statement(name)(_IMAGE.format(images=images, job=":job_id") + "ORDER BY i.index")


# By equality, so that the planner knows that they are few; it takes a range for a large part of the table.
_THESE = """unnest(CAST(:indexes AS integer[])) AS wanted (index)
CROSS JOIN LATERAL (SELECT * FROM images WHERE images.job_id = :job_id AND images.index = wanted.index OFFSET 0)"""
_ANYWHERE = """unnest(CAST(:job_ids AS bigint[]), CAST(:indexes AS integer[])) AS wanted (job_id, index)
CROSS JOIN LATERAL (
  SELECT * FROM images WHERE images.job_id = wanted.job_id AND images.index = wanted.index OFFSET 0
)"""
_IMAGES_ANYWHERE = statement("queries.images_anywhere")(_IMAGE.format(images=_ANYWHERE, job="i.job_id"))
_THESE_IMAGES = _page("queries.these_images", _THESE)
_IMAGES_FROM = _page("queries.images_from", _ALL)
_IMAGES_IN_STATE = {state: _page(f"queries.images_{state.word}", images) for state, images in _IN_STATES.items()}
_IMAGES_MARKED = _page(
    "queries.images_marked",
    """(
  SELECT marked.* FROM marks CROSS JOIN LATERAL (
    SELECT * FROM images WHERE images.job_id = :job_id AND images.index = marks.index OFFSET 0
  ) marked WHERE marks.job_id = :job_id AND marks.mark = :mark AND marks.index > :after
  ORDER BY marks.index LIMIT :limit
)""",
)
# An image has one newest failure; those before are of crashes that were only under suspicion.
_IMAGES_OF_CAUSE = _page(
    "queries.images_of_cause",
    """(
  SELECT failed.* FROM failures CROSS JOIN LATERAL (
    SELECT * FROM images WHERE images.job_id = :job_id AND images.index = failures.index AND state = 3 OFFSET 0
  ) failed
  WHERE failures.job_id = :job_id AND code = :cause AND failures.index > :after AND NOT EXISTS (
    SELECT FROM failures newer WHERE newer.job_id = failures.job_id AND newer.index = failures.index
      AND newer.id > failures.id OFFSET 0)
  ORDER BY failures.index LIMIT :limit
)""",
)
_IMAGES_NOT_FAILED = _page(
    "queries.images_not_failed",
    f"(SELECT * FROM ({_NOT_FAILED}) other ORDER BY index LIMIT :limit)",  # noqa: S608  our own text
)
_OWNS = statement("queries.owns")("SELECT EXISTS (SELECT FROM jobs WHERE id = :job_id AND tenant_id = :tenant_id)")
_OWNER = statement("queries.owner")("SELECT tenant_id FROM jobs WHERE id = :job_id AND deleted_at IS NULL")
_WAITING_MODELS = statement("queries.waiting_models")("""
SELECT DISTINCT m.name FROM models m WHERE EXISTS (
  SELECT FROM segments WHERE model_revision = m.revision AND open AND low <= high)
""")
_MODELS_OF = statement("queries.models_of")("""
SELECT DISTINCT m.name FROM segments s JOIN models m ON m.revision = s.model_revision WHERE s.job_id = :job_id
""")
_FLEET = statement("queries.fleet")(f"""
SELECT id, host, pid, device, model, state, doing, abs(extract(epoch FROM now() - seen_at))::double precision AS silent,
       NOT ({drains.NOT_DRAINED}) AS drained
FROM workers WHERE seen_at BETWEEN now() - interval '5 minutes' AND now() + interval '5 minutes' ORDER BY host, pid
""")  # noqa: S608  our own text
_WORKERS = statement("queries.workers")(f"""
SELECT model_revision, count(*) AS workers FROM workers
WHERE state IN ('ready', 'busy')
  AND seen_at BETWEEN now() - interval '15 seconds' AND now() + interval '15 seconds' AND {drains.NOT_DRAINED}
GROUP BY model_revision
""")  # noqa: S608  our own text
_READY = statement("queries.ready")("""
SELECT EXISTS (SELECT FROM models WHERE name = :model) AS registered, EXISTS (SELECT FROM models) AS worker_was_up
""")


@dataclass(frozen=True, slots=True)
class JobView:
    """One job at one moment. `reused` counts the done images that were copied from earlier ones; `device_seconds` says
    how long devices were at its images. `rate` is the recent number of images finished per second, 0 until enough were;
    `eta_seconds` is None while it is 0 (`remaining.py`); it probably takes from `eta_low` to `eta_high` seconds.
    `retention` are the days by kind that its submission gave."""

    id: int
    state: str
    paused: bool
    priority: int
    total: int
    counts: dict[str, int]
    labels: dict[str, str]
    requests: int
    retry_of: int | None
    reused: int
    device_seconds: float
    dedupe: bool
    embed_prompt: bool
    in_shards: bool
    drawn_seeds: int
    trace_id: str | None
    created_at: datetime
    started_at: datetime | None
    cancel_requested_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    stop_reason: str | None
    retention: dict[str, int | None] | None
    payloads_erased_at: datetime | None
    objects_deleted_at: datetime | None
    rate: float
    eta_seconds: float | None
    eta_low: float | None
    eta_high: float | None
    as_of: datetime

    @property
    def stands_still(self) -> bool:
        """Whether images of it wait and none is being rendered, although it is not paused."""
        return bool(self.counts["queued"]) and not self.counts["rendering"] and not self.paused


@dataclass(frozen=True, slots=True)
class ImageView:
    """One image at one moment, with its request. In a done image, `flagged` is None if no checker ran, and `versions`
    if none were recorded. `marked_by` and `marked_at` say who set the mark, and when. `scores` by name, None where a
    scorer failed; `scores` and `phash` are None if nobody scored the image."""

    job_id: int
    index: int
    state: ImageState
    payload: Payload
    object_key: str | None
    sha256: str | None
    bytes: int | None
    truncated: bool | None
    flagged: bool | None
    unknown_words: tuple[str, ...] | None
    reproducibility_class: str | None
    reused: bool | None
    render_seconds: float | None
    finished_at: datetime | None
    versions: str | None
    device: str | None
    error_code: str | None
    error_message: str | None
    mark: Mark | None
    marked_by: str | None
    marked_at: datetime | None
    scores: dict[str, float | None] | None
    phash: int | None

    @property
    def seed(self) -> int:
        return self.payload.seed_of(self.index)


def job(connection: Connection, tenant_id: int, job_id: int) -> JobView | None:
    row = connection.execute(_ONE_JOB, {"tenant_id": tenant_id, "job_id": job_id}).one_or_none()
    return None if row is None else _job_view(row)


def jobs(connection: Connection, tenant_id: int, *, before: int, limit: int, state: str | None = None) -> list[JobView]:
    """The newest jobs with an id below `before`; only those in the given state, if any."""
    values = {"tenant_id": tenant_id, "before": before, "limit": limit, "state": state}
    return [_job_view(row) for row in connection.execute(_JOBS if state is None else _JOBS_IN_STATE, values)]


def under_way(connection: Connection, tenant_id: int, limit: int) -> list[JobView]:
    """The newest jobs that are being rendered, then those that are ending, then those that wait."""
    values = {"tenant_id": tenant_id, "limit": limit, "states": UNDER_WAY}
    return [_job_view(row) for row in connection.execute(_UNDER_WAY, values)]


def any_jobs(connection: Connection, ids: Iterable[int]) -> list[JobView]:
    """These jobs of any tenants, but deleted ones, in a transaction of the system."""
    return [_job_view(row) for row in connection.execute(_ANY_JOBS, {"ids": list(ids)})]


def these_jobs(connection: Connection, tenant_id: int, ids: Iterable[int]) -> list[JobView]:
    """The tenant's jobs among these, the newest first."""
    return [_job_view(row) for row in connection.execute(_THESE_JOBS, {"tenant_id": tenant_id, "ids": list(ids)})]


def labelled_jobs(
    connection: Connection,
    tenant_id: int,
    label: tuple[str, str],
    *,
    before: int,
    limit: int,
    state: str | None = None,
    most: int = LOOKED_AT,
) -> tuple[list[JobView], int | None]:
    """The newest jobs with that label, as `jobs`. Looks at `most` jobs: if there are others, the second value is the id
    that was reached."""
    values = {"tenant_id": tenant_id, "before": before, "limit": limit, "state": state, "most": most}
    labels = {"labels": json.dumps(dict([label]))}
    found = connection.execute(_LABELLED if state is None else _LABELLED_IN_STATE, values | labels).one()
    return these_jobs(connection, tenant_id, found.ids), found.reached


def exists(connection: Connection, tenant_id: int, job_id: int) -> bool:
    """Whether the tenant has such a job."""
    return bool(connection.execute(_OWNS, {"job_id": job_id, "tenant_id": tenant_id}).scalar_one())


def images(
    connection: Connection, tenant_id: int, job_id: int, *, state: ImageState | None, after: int, limit: int
) -> list[ImageView] | None:
    """The job's images with an index above `after`, in order. None: the tenant has no such job."""
    if not connection.execute(_OWNS, {"job_id": job_id, "tenant_id": tenant_id}).scalar_one():
        return None
    values = {"job_id": job_id, "after": after, "limit": limit}
    rows = connection.execute(_IMAGES_FROM if state is None else _IMAGES_IN_STATE[state], values)
    return [_image_view(row) for row in rows]


def images_marked(
    connection: Connection, tenant_id: int, job_id: int, mark: str, *, after: int, limit: int
) -> list[ImageView] | None:
    """The images that have this mark, as `images`."""
    if not exists(connection, tenant_id, job_id):
        return None
    values = {"job_id": job_id, "mark": mark, "after": after, "limit": limit}
    return [_image_view(row) for row in connection.execute(_IMAGES_MARKED, values)]


def images_of_cause(
    connection: Connection, tenant_id: int, job_id: int, cause: str, *, after: int, limit: int
) -> list[ImageView] | None:
    """The images that failed for this cause, as `images`."""
    if not exists(connection, tenant_id, job_id):
        return None
    values = {"job_id": job_id, "cause": cause, "after": after, "limit": limit}
    return [_image_view(row) for row in connection.execute(_IMAGES_OF_CAUSE, values)]


def owner(connection: Connection, job_id: int) -> int | None:
    """The job's tenant, in a transaction of the system. None: there is no such job, or it is deleted."""
    found: int | None = connection.execute(_OWNER, {"job_id": job_id}).scalar_one_or_none()
    return found


def image(connection: Connection, tenant_id: int | None, job_id: int, index: int) -> ImageView | None:
    """One image. None: there is none, or it belongs to another tenant. With tenant_id None, any tenant's image, in a
    transaction of the system, which also sees jobs that are deleted: so it is asked for."""
    shown = owner(connection, job_id) is not None if tenant_id is None else exists(connection, tenant_id, job_id)
    found = images_at(connection, job_id, [index]) if shown else []
    return found[0] if found else None


def images_at(connection: Connection, job_id: int, indexes: Sequence[int]) -> list[ImageView]:
    """The job's images of these indexes, in order."""
    rows = connection.execute(_THESE_IMAGES, {"job_id": job_id, "indexes": list(indexes)})
    return [_image_view(row) for row in rows]


def images_anywhere(connection: Connection, places: Sequence[tuple[int, int]]) -> list[ImageView]:
    """The images of these jobs and indexes, in this order; those that the transaction does not see are left out."""
    values = {"job_ids": [job_id for job_id, _ in places], "indexes": [index for _, index in places]}
    views = [_image_view(row) for row in connection.execute(_IMAGES_ANYWHERE, values)]
    found = {(view.job_id, view.index): view for view in views}
    return [found[place] for place in places if place in found]


def images_failed_first(
    connection: Connection, tenant_id: int, job_id: int, *, failed: bool, after: int, limit: int
) -> list[ImageView] | None:
    """The failed images in order, then all others. `failed`: the page before ended among the failed ones, at the index
    `after`. None: the tenant has no such job."""
    if not exists(connection, tenant_id, job_id):
        return None
    return page_failed_first(connection, job_id, failed=failed, after=after, limit=limit)


def page_failed_first(connection: Connection, job_id: int, *, failed: bool, after: int, limit: int) -> list[ImageView]:
    """As `images_failed_first`, of a job that is known to be the tenant's."""
    found: list[ImageView] = []
    if failed:
        rows = connection.execute(
            _IMAGES_IN_STATE[ImageState.FAILED], {"job_id": job_id, "after": after, "limit": limit}
        )
        found, after = [_image_view(row) for row in rows], -1
    if len(found) == limit:
        return found
    values = {"job_id": job_id, "after": after, "limit": limit - len(found)}
    return found + [_image_view(row) for row in connection.execute(_IMAGES_NOT_FAILED, values)]


def waiting_models(connection: Connection) -> list[str]:
    """Models for which images may be queued: their workers should be woken."""
    return list(connection.execute(_WAITING_MODELS).scalars())


def models_of(connection: Connection, job_id: int) -> list[str]:
    """The models that render a job."""
    return list(connection.execute(_MODELS_OF, {"job_id": job_id}).scalars())


def fleet(connection: Connection) -> Sequence[Any]:
    """Workers seen in the last five minutes; `silent` is the number of seconds since then."""
    return connection.execute(_FLEET).all()


def workers_by_revision(connection: Connection) -> dict[str, int]:
    """How many live workers serve each model revision."""
    return {row.model_revision: row.workers for row in connection.execute(_WORKERS)}


def readiness(connection: Connection, model: str) -> tuple[bool, bool]:
    """Whether the model is registered, and whether a worker has ever been up. Only workers register models; a model
    stays registered while no worker runs."""
    row = connection.execute(_READY, {"model": model}).one()
    return row.registered, row.worker_was_up


def _job_view(row: Any) -> JobView:
    left = row.queued + row.rendering
    rate = row.rate if left and not row.paused and row.state in ("queued", "in_progress") else 0.0
    error = _error(rate * row.rate_seconds, row.rendering)
    return JobView(
        id=row.id,
        state=row.state,
        paused=row.paused,
        priority=row.priority,
        total=row.total,
        counts={name: getattr(row, name) for name in COUNTS},
        labels=row.labels,
        requests=row.requests,
        retry_of=row.parent_id,
        reused=row.reused,
        device_seconds=row.device_seconds,
        dedupe=row.dedupe,
        embed_prompt=row.embed_prompt,
        in_shards=row.in_shards,
        drawn_seeds=row.drawn_seeds,
        trace_id=traces.trace_id(row.traceparent),
        created_at=row.created_at,
        started_at=row.started_at,
        cancel_requested_at=row.cancel_requested_at,
        finished_at=row.finished_at,
        expires_at=row.expires_at,
        stop_reason=row.stop_reason,
        retention=row.retention,
        payloads_erased_at=row.payloads_erased_at,
        objects_deleted_at=row.objects_deleted_at,
        rate=rate,
        eta_seconds=left / rate if rate > 0 else None,
        eta_low=left / rate / (1 + error) if rate > 0 else None,
        eta_high=left / rate / (1 - error) if rate > 0 else None,
        as_of=row.as_of,
    )


def _error(finished: float, rendering: int) -> float:
    """By what part of itself a rate may be wrong, behind which are so many finished images: by a batch at either end of
    the time in which they were finished."""
    return min(0.8, 2 * max(1, rendering) / max(1.0, finished))


def _image_view(row: Any) -> ImageView:
    return ImageView(
        job_id=row.job_id,
        index=row.index,
        state=ImageState(row.state),
        payload=columns.read_payload(row),
        object_key=row.object_key,
        sha256=None if row.sha256 is None else bytes(row.sha256).hex(),
        bytes=row.bytes,
        truncated=row.truncated,
        flagged=row.flagged,
        unknown_words=None if row.unknown_words is None else tuple(row.unknown_words),
        reproducibility_class=row.reproducibility_class,
        reused=row.reused,
        render_seconds=row.render_seconds,
        finished_at=row.finished_at,
        versions=row.versions,
        device=row.device,
        error_code=row.code,
        error_message=row.message,
        mark=row.mark,
        marked_by=row.marked_by,
        marked_at=row.marked_at,
        scores=row.scores,
        phash=row.phash,
    )
