"""Moves what waits for one revision of a model to another one, job by job.

A segment none of whose images has begun gets the other revision. Otherwise the images that wait move to a segment like
theirs, since those that were drawn keep the revision that drew them. What is being rendered stays; it is done by the
old revision or, if it comes back, moved by the next call. Drafts and batches that are being validated wait, too; what
is added to them later is of the newest revision by itself. Functions take an open system transaction and never commit.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.events import log
from services.core.model import states
from services.core.model.licenses import License
from services.core.model.states import JobState
from services.core.policy.policies import Policy

_AT_ONCE = 20_000
_STATES = states.CLAIMABLE_JOB_STATES | {JobState.DRAFT, JobState.VALIDATING}
_MAY_WAIT = "(s.open OR j.paused OR j.state IN ('draft', 'validating')) AND s.low <= s.high AND j.finished_at IS NULL"
_SHAPE = tuple(name for name in columns.SHAPE if name != "model_revision")
_TARGET = statement("model_moves.target")("""
SELECT name, revision, license FROM models WHERE revision = :model OR name = :model
ORDER BY revision = :model DESC, registered_at DESC LIMIT 1
""")
_WAITING = statement("model_moves.waiting")(f"""
SELECT s.model_revision AS revision, count(DISTINCT s.job_id) AS jobs FROM segments s JOIN jobs j ON j.id = s.job_id
WHERE {_MAY_WAIT} GROUP BY 1 ORDER BY 1
""")  # noqa: S608  our own text
_JOBS = statement("model_moves.jobs")(f"""
SELECT DISTINCT s.job_id, j.tenant_id FROM segments s JOIN jobs j ON j.id = s.job_id
WHERE s.model_revision = :old AND {_MAY_WAIT} AND s.job_id > :after AND j.state = ANY(:sources)
ORDER BY s.job_id LIMIT 1000
""")  # noqa: S608  our own text
_LOCK_JOB = statement("model_moves.lock_job")("SELECT pg_advisory_xact_lock(:job_id)")  # claims and settles wait
# What the other revision cannot draw stays: a size or steps that it has not, a class that was asked for.
_SEGMENTS = statement("model_moves.segments")("""
SELECT s.id, s.reproducibility_class = '' AND EXISTS (
    SELECT FROM model_shapes m WHERE m.model_revision = :new AND m.width = s.width AND m.height = s.height
      AND m.max_steps >= s.steps)
  AND (s.prompt_chunks = 1 OR EXISTS (SELECT FROM models WHERE revision = :new AND long_prompts IS NOT NULL))
  AND (s.first_step = 0 OR EXISTS (SELECT FROM models WHERE revision = :new AND redraws)) AS fits,
  NOT EXISTS (SELECT FROM images i WHERE i.job_id = s.job_id AND i.segment_id = s.id AND i.state <> 0) AS is_fresh
FROM segments s
WHERE s.job_id = :job_id AND s.model_revision = :old AND s.low <= s.high
  AND EXISTS (SELECT FROM jobs WHERE id = :job_id AND state = ANY(:sources) AND finished_at IS NULL)
ORDER BY s.id FOR UPDATE
""")
_RENAME = statement("model_moves.rename")("""
WITH moved AS (
  UPDATE segments SET model_revision = :new WHERE job_id = :job_id AND id = :segment_id RETURNING job_id, id
)
SELECT count(*) FROM images i JOIN moved m ON i.job_id = m.job_id AND i.segment_id = m.id WHERE i.state = 0
""")
_LIKE_IT = statement("model_moves.like_it")(f"""
SELECT s.id FROM segments s JOIN segments o USING (job_id, {", ".join(_SHAPE)})
WHERE o.job_id = :job_id AND o.id = :segment_id AND s.model_revision = :new AND s.cap IS NOT DISTINCT FROM o.cap
LIMIT 1
""")  # noqa: S608  our own text
_COPY = statement("model_moves.copy")(f"""
INSERT INTO segments (job_id, id, tenant_id, model_revision, {", ".join(_SHAPE)}, priority, open, cap, low, high)
SELECT job_id, (SELECT max(id) + 1 FROM segments WHERE job_id = :job_id), tenant_id, :new, {", ".join(_SHAPE)},
       priority, open, cap, low, high
FROM segments WHERE job_id = :job_id AND id = :segment_id RETURNING id
""")  # noqa: S608  our own text
_MOVE = statement("model_moves.move")("""
WITH waiting AS MATERIALIZED (
  SELECT i.job_id, i.index FROM segments s JOIN images i ON i.job_id = s.job_id AND i.segment_id = s.id
  WHERE s.job_id = :job_id AND s.id = :segment_id AND i.index >= s.low AND i.state = 0
  ORDER BY i.index LIMIT :limit
), moved AS (
  UPDATE images SET segment_id = :target FROM waiting
  WHERE images.job_id = waiting.job_id AND images.index = waiting.index AND images.state = 0 RETURNING images.index
), widened AS (
  UPDATE segments SET low = least(segments.low, span.low), high = greatest(segments.high, span.high)
  FROM (SELECT min(index) AS low, max(index) AS high FROM moved) span
  WHERE job_id = :job_id AND id = :target AND span.low IS NOT NULL
)
SELECT count(*) FROM moved
""")
_RENDERING = statement("model_moves.rendering")("""
SELECT count(*) FROM claims c CROSS JOIN unnest(c.job_ids) AS held (job_id)
JOIN images i ON i.job_id = held.job_id AND i.claim_id = c.id
JOIN segments s ON s.job_id = i.job_id AND s.id = i.segment_id
WHERE c.state = 'open' AND s.model_revision = :old
""")
_LOG = statement("model_moves.log")(f"""
WITH made AS (SELECT CAST(:job_id AS bigint) AS id, CAST(:tenant_id AS integer) AS tenant_id)
{
    log.of_jobs(
        "made",
        "'job.model_moved'",
        "jsonb_build_object('images', CAST(:images AS integer), 'from', CAST(:old AS text), 'to', CAST(:new AS text))",
    )
}
""")


@dataclass(frozen=True, slots=True)
class Target:
    """Where images are moved to: a model's current revision."""

    name: str
    revision: str
    license: License | None


@dataclass(frozen=True, slots=True)
class Moved:
    """What one call has done to a job: `images` moved, and `left`: segments that it may not or cannot draw.
    `is_all`: nothing else of the job waits for the old revision. `refusal`: why none was moved, its licence namely."""

    images: int
    left: int
    is_all: bool = True
    refusal: str | None = None


def target(connection: Connection, model: str) -> Target | None:
    """The model of that name or revision, in its current revision. None: no worker has served it."""
    row = connection.execute(_TARGET, {"model": model}).one_or_none()
    if row is None:
        return None
    return Target(row.name, row.revision, None if row.license is None else License.from_json(row.license))


def waiting(connection: Connection) -> dict[str, int]:
    """The revisions that open jobs wait for, each with how many jobs."""
    return {row.revision: row.jobs for row in connection.execute(_WAITING)}


def jobs(connection: Connection, old: str, after: int) -> list[tuple[int, int]]:
    """The next thousand jobs of which something waits for `old`, each with its tenant, by their ids."""
    values = {"old": old, "after": after, "sources": states.guard(_STATES)}
    return [(row.job_id, row.tenant_id) for row in connection.execute(_JOBS, values)]


def rendering(connection: Connection, old: str) -> int:
    """How many images are claimed by workers of that revision."""
    return int(connection.execute(_RENDERING, {"old": old}).scalar_one())


def move(connection: Connection, tenant_id: int, job_id: int, old: str, to: Target, *, policy: Policy) -> Moved:
    """Moves up to 20,000 images of the job; an act on it. Call it again while it is not all. `policy`: its tenant's."""
    if policy.requires_licenses and (why := policy.license_refusal(to.name, to.license)) is not None:
        return Moved(0, 1, refusal=why)
    values = {"job_id": job_id, "tenant_id": tenant_id, "old": old, "new": to.revision, "limit": _AT_ONCE}
    connection.execute(_LOCK_JOB, values)
    asked = values | {"sources": states.guard(_STATES)}
    segments = connection.execute(_SEGMENTS, asked).all()
    fitting = [row for row in segments if row.fits]
    images = sum(_moved(connection, values | {"segment_id": row.id}, is_fresh=row.is_fresh) for row in fitting)
    if images:
        connection.execute(_LOG, values | {"images": images})
    return Moved(images, len(segments) - len(fitting), is_all=images < _AT_ONCE)


def _moved(connection: Connection, values: dict[str, object], *, is_fresh: bool) -> int:
    if is_fresh:
        return int(connection.execute(_RENAME, values).scalar_one())
    place = connection.execute(_LIKE_IT, values).scalar_one_or_none()
    if place is None:
        place = connection.execute(_COPY, values).scalar_one()
    return int(connection.execute(_MOVE, values | {"target": place}).scalar_one())
