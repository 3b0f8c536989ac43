"""Says when jobs end that are too young to have a rate of their own: from the rates that workers measured for the same
shapes, and from what is ahead.

It assumes, as `estimates` does, that jobs of higher classes and older ones of the same class come first, and that all
workers of a model take part.
"""

import dataclasses
from collections.abc import Sequence

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.jobs import estimates
from services.core.jobs.estimates import Interval
from services.core.jobs.queries import JobView
from services.core.model.specs import Shape

_NOTHING = Interval(0.0, 0.0, 0.0)
MOST_AHEAD = 200  # jobs: of one that waits behind more, nothing is said

# What is left of a job is divided among its shapes as in `estimates.ahead`, and an image in the works counts in full.
_LEFT = statement("remaining.left")(f"""
WITH ahead AS MATERIALIZED (
  SELECT id, priority FROM jobs
  WHERE state IN ('queued', 'in_progress') AND NOT paused AND (priority, id) <= (:priority, :job_id)
  ORDER BY priority, id LIMIT :most
)
SELECT ahead.id, {columns.shape("s")},
       (c.queued + c.rendering) * span / sum(span) OVER (PARTITION BY ahead.id) AS images
FROM ahead
JOIN job_counts c ON c.job_id = ahead.id
JOIN segments s ON s.job_id = ahead.id
CROSS JOIN LATERAL (SELECT greatest(s.high - s.low + 1, 1)::double precision AS span) waiting
WHERE c.queued + c.rendering > 0
ORDER BY ahead.priority, ahead.id
""")  # noqa: S608  our own text


def lacking(view: JobView) -> bool:
    """Whether the job is under way and its own rate does not tell when it ends."""
    left = view.counts["queued"] + view.counts["rendering"]
    return bool(left) and view.eta_seconds is None and not view.paused and view.state in ("queued", "in_progress")


def estimated(connection: Connection, views: Sequence[JobView]) -> list[JobView]:
    """The jobs, with an estimate of the time that is left for those that lack it. It stays None if no rate was measured
    or no worker is live. Takes a system transaction: the work of all tenants is ahead."""
    wanted = [view for view in views if lacking(view)]
    if not wanted:
        return list(views)
    last = max(wanted, key=lambda view: (view.priority, view.id))
    values = {"priority": last.priority, "job_id": last.id, "most": MOST_AHEAD}
    seconds = _ends(
        connection, [(row.id, columns.read_shape(row), row.images) for row in connection.execute(_LEFT, values)]
    )
    return [_told(view, seconds.get(view.id)) if lacking(view) else view for view in views]


def _told(view: JobView, left: Interval | None) -> JobView:
    if left is None:
        return view
    return dataclasses.replace(view, eta_seconds=left.expected, eta_low=left.low, eta_high=left.high)


def _ends(connection: Connection, left: Sequence[tuple[int, Shape, float]]) -> dict[int, Interval]:
    """The seconds until each job ends, if what is left is rendered in this order."""
    measured = estimates.Measured(connection, {shape.model_revision for _, shape, _ in left})
    work: dict[str, Interval | None] = {}  # accelerator-seconds of each model up to here; None: not known
    ends: dict[int, Interval | None] = {}
    for job_id, shape, images in left:
        revision, rate = shape.model_revision, measured.rate(shape)
        before, workers = work.get(revision, _NOTHING), len(measured.serving.of(shape))
        work[revision] = after = None if rate is None or before is None else before + rate.span(images)
        known = ends.get(job_id, _NOTHING)
        ends[job_id] = None if after is None or known is None or not workers else _later(known, after.over(workers))
    return {job_id: seconds for job_id, seconds in ends.items() if seconds is not None}


def _later(one: Interval, other: Interval) -> Interval:
    return Interval(max(one.low, other.low), max(one.expected, other.expected), max(one.high, other.high))
