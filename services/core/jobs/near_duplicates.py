"""Near-duplicates: images whose perceptual hashes differ in few bits, within a job and over the jobs of a label.

A call looks at a bounded number of images and says where it stopped: groups are found among these, so one that
reaches further is found in parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.model.errors import NotFound

LOOKED_AT = 20_000  # images of one call
COMPARED = 3_000_000  # pairs of hashes, at most
MOST_BITS, USUAL_BITS = 6, 4  # in which two hashes may differ
_JOBS = 500  # of a label, for one call
_BITS = 64
Place = tuple[int, int]  # a job's id and an index

# A job has no more rows here than it has done images, and the caller names no more jobs than fill the page.
_HASHES = statement("near_duplicates.hashes")("""
SELECT r.job_id, r.index, r.phash
FROM unnest(CAST(:job_ids AS bigint[])) WITH ORDINALITY AS wanted (job_id, nth)
CROSS JOIN LATERAL (
  SELECT job_id, index, phash FROM results
  WHERE results.job_id = wanted.job_id AND results.index > CASE WHEN nth = 1 THEN :after ELSE -1 END
  ORDER BY results.index LIMIT :most
) r
ORDER BY nth, r.index LIMIT :most
""")


@dataclass(frozen=True, slots=True)
class Found:
    """`groups` of two images or more, each in the order in which they were looked at, as the groups are by their first
    image. `hashed` of the `looked_at` images have a hash. `reached`: where the next call goes on; None: it is all."""

    groups: list[list[Place]]
    looked_at: int
    hashed: int
    reached: Place | None


def of_job(
    connection: Connection, tenant_id: int, job_id: int, bits: int, *, after: int, most: int = LOOKED_AT
) -> Found:
    """Among the next `most` done images behind the index `after`. Raises NotFound."""
    job = queries.job(connection, tenant_id, job_id)
    if job is None:
        raise NotFound("There is no such job.")
    return _find(connection, [job_id], bits, after=after, most=most, following=None)


def of_label(
    connection: Connection, tenant_id: int, label: tuple[str, str], bits: int, *, after: Place | None,
    most: int = LOOKED_AT,
) -> Found:  # fmt: skip
    """Among the next `most` done images of the newest jobs with that label, behind `after`."""
    first, index = after or ((1 << 63) - 2, -1)
    jobs, reached = queries.labelled_jobs(connection, tenant_id, label, before=first + 1, limit=_JOBS)
    done, names = 0, []
    for job in jobs:
        if done > most:
            break
        names.append(job.id)
        done += job.counts["done"]
    following = None  # where the next call goes on when all images of these jobs were looked at
    if len(names) < len(jobs) or len(jobs) == _JOBS:
        following = (names[-1] - 1, -1)
    elif reached is not None:
        following = (reached - 1, -1)
    is_going_on = bool(names) and names[0] == first
    return _find(connection, names, bits, after=index if is_going_on else -1, most=most, following=following)


def _find(
    connection: Connection, job_ids: list[int], bits: int, *, after: int, most: int, following: Place | None
) -> Found:
    rows: Sequence[Any] = connection.execute(_HASHES, {"job_ids": job_ids, "after": after, "most": most}).all()
    groups, compared = grouped([((row.job_id, row.index), row.phash) for row in rows], bits)
    is_cut = compared < len(rows) or len(rows) == most
    reached = (rows[compared - 1].job_id, rows[compared - 1].index) if is_cut and compared else following
    return Found(groups, compared, sum(row.phash is not None for row in rows[:compared]), reached)


def grouped(
    images: Sequence[tuple[Place, int | None]], bits: int, *, pairs: int = COMPARED
) -> tuple[list[list[Place]], int]:
    """The groups of images of which each has a hash that differs from another's in at most `bits` bits; and how many
    images were looked at until `pairs` hashes were compared.

    Two hashes that differ in at most n bits agree in one of n + 1 parts, so only those with an equal part are compared.
    """
    parts = _parts(bits + 1)
    alike: dict[int, list[int]] = {}  # by hash: where they are in `images`
    leaders: dict[int, int] = {}  # from a hash towards the first of its group
    buckets: list[dict[int, list[int]]] = [{} for _ in parts]
    looked_at = 0
    for _, signed in images:
        if pairs < 0:
            break
        looked_at += 1
        if signed is None:
            continue
        own = signed % (1 << _BITS)
        if own in alike:
            alike[own].append(looked_at - 1)
            continue
        alike[own], leaders[own] = [looked_at - 1], own
        for (shift, mask), bucket in zip(parts, buckets, strict=True):
            others = bucket.setdefault(own >> shift & mask, [])
            pairs -= len(others)
            for other in others:
                if (own ^ other).bit_count() <= bits:
                    _join(leaders, other, own)
            others.append(own)
    groups: dict[int, list[int]] = {}
    for own, nths in alike.items():
        groups.setdefault(_leader(leaders, own), []).extend(nths)
    found = sorted(sorted(nths) for nths in groups.values() if len(nths) > 1)
    return [[images[nth][0] for nth in nths] for nths in found], looked_at


def _parts(count: int) -> list[tuple[int, int]]:
    """Shift and mask of each of so many parts that make 64 bits."""
    edges = [_BITS * nth // count for nth in range(count + 1)]
    return [(low, (1 << high - low) - 1) for low, high in pairwise(edges)]


def _leader(leaders: dict[int, int], own: int) -> int:
    while leaders[own] != own:
        leaders[own] = leaders[leaders[own]]
        own = leaders[own]
    return own


def _join(leaders: dict[int, int], other: int, own: int) -> None:
    first, second = _leader(leaders, other), _leader(leaders, own)
    if first != second:
        leaders[second] = first
