"""The jobs that match a filter and that an act can be done to, oldest first, a bounded number looked at in one look."""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.bulk.verbs import Act, Options
from services.core.db.statements import statement
from services.core.jobs.listing import BY_WHOM, OF_MODEL, Filter, bounds, searched
from services.core.model import requests

LOOKED_AT = 10_000
LOOKS = 50  # for one count: half a million jobs
_MATCHING = f"""
looked_at AS MATERIALIZED (
  SELECT mine.id, mine.labels, mine.paused, mine.priority
  FROM unnest(CAST(:states AS text[])) AS wanted (state) CROSS JOIN LATERAL (
    SELECT id, labels, paused, priority FROM jobs
    WHERE jobs.state = wanted.state AND tenant_id = :tenant_id AND id > :after AND id <= :last AND deleted_at IS NULL
    ORDER BY id LIMIT :most
  ) mine ORDER BY mine.id LIMIT :most
), matching AS (
  SELECT id, c.queued, c.rendering, c.done, c.failed, c.cancelled
  FROM looked_at JOIN job_counts c ON c.job_id = looked_at.id
  WHERE labels @> CAST(:labels AS jsonb)
    AND (:text = '' OR EXISTS (
      SELECT FROM jsonb_each_text(labels) WHERE strpos(lower(key || ':' || value), lower(:text)) > 0))
    AND (CAST(:of_priority AS smallint) IS NULL OR priority = :of_priority)
    AND (:model = '' OR {OF_MODEL})
    AND (:who = '' OR {BY_WHOM})
    AND (CAST(:paused AS boolean) IS NULL OR paused = :paused)
    AND (CAST(:priority AS integer) IS NULL OR priority <> :priority)
    AND (NOT :with_failures OR c.failed > 0) AND (NOT :with_cancelled OR c.failed + c.cancelled > 0)
)"""  # noqa: S608  our own text
_REACHED = "(SELECT CASE WHEN count(*) = :most THEN max(id) END FROM looked_at) AS reached"
_COUNT = statement("matching.count")(f"""
WITH {_MATCHING}
SELECT count(*) AS jobs, coalesce(sum(queued), 0) AS queued, coalesce(sum(rendering), 0) AS rendering,
       coalesce(sum(done), 0) AS done, coalesce(sum(failed), 0) AS failed, coalesce(sum(cancelled), 0) AS cancelled,
       {_REACHED}
FROM matching
""")  # noqa: S608  our own text
_NEXT = statement("matching.next")(f"""
WITH {_MATCHING}
SELECT ARRAY(SELECT id FROM matching ORDER BY id LIMIT :limit) AS ids, {_REACHED}
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Counted:
    """How many jobs an act would touch, and how many of their images. `is_all`: there are no more than these."""

    jobs: int
    images: int
    is_all: bool


@dataclass(frozen=True, slots=True)
class Some:
    """The next jobs. `reached`: where to look on; None: there are no others."""

    ids: list[int]
    reached: int | None


def count(connection: Connection, tenant_id: int, wanted: Filter, act: Act, options: Options, last: int) -> Counted:
    """Counts those that are not newer than `last`."""
    jobs = images = 0
    after: int | None = -1
    for _ in range(LOOKS):
        row = connection.execute(_COUNT, _values(tenant_id, wanted, act, options, after or 0, last)).one()
        jobs += row.jobs
        images += sum(int(getattr(row, name)) for name in act.images)
        after = row.reached
        if after is None:
            break
    return Counted(jobs, images, after is None)


def following(
    connection: Connection,
    tenant_id: int,
    wanted: Filter,
    act: Act,
    options: Options,
    *,
    after: int,
    last: int,
    limit: int,
) -> Some:
    """Up to `limit` jobs behind `after`."""
    values = _values(tenant_id, wanted, act, options, after, last) | {"limit": limit}
    row = connection.execute(_NEXT, values).one()
    ids = list(row.ids)
    return Some(ids, ids[-1] if len(ids) == limit else row.reached)


def _values(tenant_id: int, wanted: Filter, act: Act, options: Options, after: int, last: int) -> dict[str, object]:
    first, past = bounds(wanted)
    named = act.states & set(wanted.states) if wanted.states else act.states
    return {
        "tenant_id": tenant_id,
        "states": sorted(str(state) for state in named),
        "of_priority": wanted.priority,
        "paused": act.paused,
        "priority": requests.PRIORITIES.get(options.get("priority", "")),
        "with_failures": act.with_failures,
        "with_cancelled": "cancelled" in act.images and "failed" in act.images and "done" not in act.images,
        "after": max(after, first - 1),
        "last": min(last, past - 1),
        "most": LOOKED_AT,
        **searched(wanted),
    }
