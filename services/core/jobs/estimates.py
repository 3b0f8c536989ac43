"""Estimates what a job would cost and when it would finish, from the rates that workers have measured.

Accelerator-seconds are the number of images times the mean of their shape. The interval reaches from the fastest
device's mean to the slowest one's, widened by two standard errors of the mean and of a sum of that many images. The
rate of a shape that was never measured is scaled from the nearest shape of its model by pixels, steps and guidance; its
interval is twice as wide on either side, because not all of the work grows with the steps.

The time to finish assumes that the work already queued in the same and higher priority classes comes first, and that
all workers of the model are available. Other tenants in the same class change it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.fleet import drains, serving
from services.core.fleet.models import Registry
from services.core.jobs.submissions import ResolvedShape, Trial
from services.core.model import requests
from services.core.model.specs import Shape
from services.core.policy import policies
from services.core.settings import Settings

UNMEASURED = 2.0  # how many times wider the interval of a scaled shape is, on either side
LIVE_SECONDS = 15.0

# The rates of each revision, with how many of its workers are live: one row without a shape if it has no rate. The
# first row of each brings the workers.
_MEASURED = statement("estimates.measured")(f"""
SELECT wanted.revision, live.workers, {columns.timed("r")}, r.images, r.seconds_per_image, r.deviation,
       CASE row_number() OVER (PARTITION BY wanted.revision) WHEN 1 THEN ({serving.LIVE} = wanted.revision) END AS fleet
FROM unnest(CAST(:revisions AS text[])) AS wanted (revision)
CROSS JOIN LATERAL (
  SELECT count(*) AS workers FROM workers
  WHERE seen_at BETWEEN now() - make_interval(secs => :seconds) AND now() + make_interval(secs => :seconds)
    AND state IN ('ready', 'busy') AND model_revision = wanted.revision AND {drains.NOT_DRAINED}
) live
LEFT JOIN render_rates r ON r.model_revision = wanted.revision
""")  # noqa: S608  our own text
# A job's open segments, each with its share of the job's queued images: in proportion to their spans, which is exact
# for a job of one shape. All of them are read once, and by the job's id: OFFSET 0 keeps them from being looked for
# among all that are open.
SHARES = """
CROSS JOIN LATERAL (
  SELECT own.*, (high - low + 1) / sum((high - low + 1)::double precision) OVER () AS share
  FROM (SELECT * FROM segments WHERE segments.job_id = j.id OFFSET 0) own WHERE open AND low <= high
) s
"""
_AHEAD = statement("estimates.ahead")(f"""
SELECT {columns.shape("s")}, sum(c.queued * s.share) AS images
FROM (SELECT DISTINCT job_id FROM segments WHERE model_revision = ANY(:revisions) AND open AND low <= high) waits
JOIN jobs j ON j.id = waits.job_id JOIN job_counts c ON c.job_id = j.id {SHARES}
WHERE j.finished_at IS NULL AND j.state IN ('queued', 'in_progress') AND NOT j.paused AND j.priority <= :priority
  AND c.queued > 0 AND s.model_revision = ANY(:revisions)
GROUP BY {columns.shape("s")}
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Interval:
    """Seconds: the expected value and its bounds."""

    low: float
    expected: float
    high: float

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def over(self, workers: int) -> "Interval":
        return Interval(self.low / workers, self.expected / workers, self.high / workers)


@dataclass(frozen=True, slots=True)
class Rate:
    """The seconds that an image of a shape takes. `same`: measured for this shape, not scaled from another."""

    seconds: float
    same: bool
    devices: tuple[tuple[float, float, int], ...]  # mean, deviation, images measured
    scale: float = 1.0

    def span(self, images: float) -> Interval:
        """Accelerator-seconds of so many images."""
        lows, highs = [], []
        for mean, deviation, measured in self.devices:
            margin = 2 * deviation * (1 / math.sqrt(max(measured, 1)) + 1 / math.sqrt(max(images, 1)))
            lows.append(max(mean - margin, 0.0))
            highs.append(mean + margin)
        width = 1.0 if self.same else UNMEASURED
        times = images * self.scale
        return Interval(min(lows) * times / width, self.seconds * images, max(highs) * times * width)


@dataclass(frozen=True, slots=True)
class ShapeEstimate:
    model: str
    shape: Shape
    images: int
    workers: int
    rate: Rate | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """`ahead` is the number of queued images that come first. None: no rate was measured, or no worker serves it."""

    images: int
    ahead: int
    accelerator_seconds: Interval | None
    seconds_to_finish: Interval | None
    workers: int
    shapes: tuple[ShapeEstimate, ...]

    @property
    def served(self) -> bool:
        return all(entry.workers for entry in self.shapes)


class WorkTally(Trial):
    """Checks requests as a submission does, and counts them."""

    def __init__(self, settings: Settings, registry: Registry, *, defaults: dict[str, Any]) -> None:
        super().__init__(settings, registry, policy=policies.NOTHING, defaults=defaults)
        self.counts: dict[tuple[str, Shape], int] = {}  # images, by model and shape

    def _write(self, request: requests.ImageRequest, resolved: ResolvedShape, place: int, prefix: str) -> None:
        del place, prefix
        if self._alike:
            self._count(request.model, resolved, request.n, self._alike)

    def add_shape(self, place: int, value: object) -> None:
        """Checks and counts some images of one shape."""
        prefix = f"shapes[{place}]."
        try:
            asked = requests.EstimateShape.model_validate(value)
        except ValidationError as error:
            self.problems.extend(requests.problems(error, value, place, prefix, requests.EstimateShape.ALLOWED))
            return
        fields = asked.model_dump(exclude={"images"}, exclude_none=True)
        request = requests.ImageRequest(prompt="-", **fields)
        resolved = self._resolve((place,), 1, request, place, prefix)
        if resolved is not None:
            self._count(request.model, resolved, asked.images, 1)

    def _count(self, model: str | None, resolved: ResolvedShape, images: int, times: int) -> None:
        key = model or self._settings.model, resolved.shape.timed
        self.counts[key] = self.counts.get(key, 0) + images * times
        self.total += images * times
        self.requests += times


class Measured:
    """What is known of these model revisions: the rates of their shapes, and how many workers are live and what they
    serve."""

    def __init__(self, connection: Connection, revisions: Iterable[str]) -> None:
        values = {"revisions": list(revisions), "seconds": LIVE_SECONDS}
        found = connection.execute(_MEASURED, values).all()
        self._rows = [row for row in found if row.images is not None]
        self._rates: dict[Shape, Rate | None] = {}
        self.workers = {row.revision: int(row.workers) for row in found if row.workers}
        self.serving = serving.read([worker for row in found for worker in row.fleet or ()])

    def rate(self, shape: Shape) -> Rate | None:
        """None: no shape of its model was measured."""
        shape = shape.timed
        if shape not in self._rates:
            self._rates[shape] = _rate(self._rows, shape)
        return self._rates[shape]


def estimate(connection: Connection, counts: dict[tuple[str, Shape], int], priority: int) -> Estimate:
    """Estimates the images counted by model and shape. Takes a system transaction: the work of all tenants counts."""
    revisions = sorted({shape.model_revision for _, shape in counts})
    measured = Measured(connection, revisions)
    workers = measured.workers
    ahead = {
        columns.read_shape(row): float(row.images)
        for row in connection.execute(_AHEAD, {"revisions": revisions, "priority": priority})
    }
    rates = {shape: measured.rate(shape) for shape in {*ahead, *(shape for _, shape in counts)}}
    shapes = tuple(
        ShapeEstimate(model, shape, images, workers.get(shape.model_revision, 0), rates[shape])
        for (model, shape), images in counts.items()
    )
    own: dict[Shape, float] = {}
    for (_, shape), images in counts.items():
        own[shape] = own.get(shape, 0) + images
    return Estimate(
        images=sum(counts.values()),
        ahead=round(sum(ahead.values())),
        accelerator_seconds=_work(own, rates),
        seconds_to_finish=_finish(own, ahead, rates, workers),
        workers=sum(workers.values()),
        shapes=shapes,
    )


def _finish(
    own: dict[Shape, float], ahead: dict[Shape, float], rates: dict[Shape, Rate | None], workers: dict[str, int]
) -> Interval | None:
    """The time until the last of the job's models is done. Workers of different models work at the same time."""
    spans = []
    for revision in {shape.model_revision for shape in own}:
        waiting = {shape: images for shape, images in ahead.items() if shape.model_revision == revision}
        for shape, images in own.items():
            if shape.model_revision == revision:
                waiting[shape] = waiting.get(shape, 0.0) + images
        work = _work(waiting, rates)
        if work is None or not workers.get(revision):
            return None
        spans.append(work.over(workers[revision]))
    return max(spans, key=lambda span: span.expected, default=None)


def _work(images: dict[Shape, float], rates: dict[Shape, Rate | None]) -> Interval | None:
    total = Interval(0.0, 0.0, 0.0)
    for shape, count in images.items():
        rate = rates[shape]
        if rate is None:
            return None
        total += rate.span(count)
    return total


def _rate(measured: Sequence[Any], shape: Shape) -> Rate | None:
    """The measured rate of this shape; otherwise that of the nearest measured shape of its model, scaled."""
    by_shape: dict[Shape, list[Any]] = {}
    for row in measured:
        if row.model_revision == shape.model_revision and row.images > 0:
            by_shape.setdefault(columns.read_timed(row), []).append(row)
    if not by_shape:
        return None
    near = shape.nearest(by_shape)
    rows, scale = by_shape[near], shape.work / near.work
    devices = tuple((row.seconds_per_image, row.deviation, int(row.images)) for row in rows)
    mean = sum(seconds * images for seconds, _, images in devices) / sum(images for _, _, images in devices)
    return Rate(mean * scale, near == shape, devices, scale)
