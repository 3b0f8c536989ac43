"""Pages of a job's requests, failed ones first. A request's state follows from the states of its images.

Pages go through the states one after the other, and through each in order of index. Within a state a query jumps from
an image in that state to its request, and on to the first such image after that request. Each state is found by an
index that holds no other state, so the cost depends only on the requests found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.columns import Payload
from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.jobs.queries import ImageView
from services.core.model.errors import NotFound
from services.core.model.states import ImageState

ORDER = (ImageState.FAILED, ImageState.RENDERING, ImageState.QUEUED, ImageState.CANCELLED, ImageState.DONE)
MAX_IMAGES = 10_000  # on a page; a request has up to 1,000
LOOKED_AT = 20_000  # requests read for one page

_STATE = """
SELECT p.index, p.n, p.weight, state.* FROM {requests} p
CROSS JOIN LATERAL (
  SELECT CASE WHEN count(*) FILTER (WHERE i.state = 3) > 0 THEN 3 WHEN count(*) FILTER (WHERE i.state = 2) = p.n THEN 2
              WHEN count(*) FILTER (WHERE i.state = 4) > 0 THEN 4 WHEN count(*) FILTER (WHERE i.state = 1) > 0 THEN 1
              ELSE 0 END AS state
  FROM images i WHERE i.job_id = :job_id AND i.index >= p.index AND i.index < p.index + p.n
) state
"""
# The first image in the state at or after an index.
_NEXT = (
    """SELECT index FROM images WHERE job_id = :job_id AND state = {state} AND index >= {at} ORDER BY index LIMIT 1"""
)
_NEXT_DONE = "SELECT index FROM results WHERE job_id = :job_id AND index >= {at} ORDER BY index LIMIT 1"
_NEXT_QUEUED = """
SELECT min(waiting.index) FROM segments s CROSS JOIN LATERAL (
  SELECT index FROM images
  WHERE images.job_id = :job_id AND segment_id = s.id AND state = 0 AND index >= {at} ORDER BY index LIMIT 1
) waiting
WHERE s.job_id = :job_id HAVING min(waiting.index) IS NOT NULL
"""
_JUMP = """(
  WITH RECURSIVE found AS (
    (SELECT p.* FROM ({start}) first (index) CROSS JOIN LATERAL ({payload}) p)
    UNION ALL
    SELECT p.* FROM found CROSS JOIN LATERAL ({next}) next (index) CROSS JOIN LATERAL ({payload_next}) p
  )
  SELECT * FROM found LIMIT :looked_at
)"""
_PAYLOAD = f"""SELECT index, n, 1 + {columns.LISTED_BYTES} / 512 AS weight FROM payloads
WHERE payloads.job_id = :job_id AND payloads.index <= {{at}} ORDER BY payloads.index DESC LIMIT 1"""  # noqa: S608
# In the whole system, few images are being rendered at any time.
_RENDERING = """(
  SELECT DISTINCT p.*
  FROM (SELECT index FROM images WHERE job_id = :job_id AND claim_id IS NOT NULL OFFSET 0) i
  CROSS JOIN LATERAL ({payload}) p
  WHERE p.index >= :from ORDER BY p.index LIMIT :looked_at
)"""


def _jump(state: ImageState) -> str:
    first = {ImageState.QUEUED: _NEXT_QUEUED, ImageState.DONE: _NEXT_DONE}.get(state, _NEXT)
    return _JUMP.format(
        start=first.format(at=":from", state=int(state)),
        payload=_PAYLOAD.format(at="first.index"),
        next=first.format(at="found.index + found.n", state=int(state)),
        payload_next=_PAYLOAD.format(at="next.index"),
    )


_SOURCES = {state: _jump(state) for state in ORDER} | {
    ImageState.RENDERING: _RENDERING.format(payload=_PAYLOAD.format(at="i.index"))
}
_REQUESTS = {
    state: statement(f"request_queries.{state.word}")(_STATE.format(requests=source))
    for state, source in _SOURCES.items()
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins: the state of its first request and an index."""

    state: ImageState
    index: int = 0


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request at one moment, with its images."""

    payload: Payload
    state: ImageState
    images: tuple[ImageView, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A request of the page. `weight` counts towards MAX_IMAGES."""

    n: int
    weight: int
    state: ImageState


def page(
    connection: Connection, tenant_id: int, job_id: int, *, only: ImageState | None, place: Place | None, limit: int
) -> tuple[list[RequestView], Place | None]:
    """Up to `limit` requests from `place` on, and where the next page begins (None: this is the last). Raises NotFound.

    A request that changes its state while a client reads the pages may be missed or listed twice.
    """
    job = queries.job(connection, tenant_id, job_id)
    if job is None:
        raise NotFound("There is no such job.")
    found: dict[int, _Found] = {}  # by index
    states = (only,) if only is not None else ORDER
    ended: Place | None = None
    for state in states[states.index(place.state) if place else 0 :]:
        if not job.counts[state.word]:
            continue
        start = place.index if place is not None and place.state is state else 0
        ended = _gather(connection, job_id, Place(state, start), found, limit)
        if ended is not None:
            break
    images = queries.images_at(connection, job_id, [first + nth for first in found for nth in range(found[first].n)])
    return _request_views(found, images), ended


def _gather(
    connection: Connection,
    job_id: int,
    place: Place,
    found: dict[int, _Found],
    limit: int,
) -> Place | None:
    """Adds requests in the state of `place` to `found`. Returns where to continue, or None if there are no more."""
    values = {"job_id": job_id, "from": place.index, "looked_at": LOOKED_AT}
    total = sum(request.weight for request in found.values())
    looked_at, end = 0, place.index
    options = {"stream_results": True, "max_row_buffer": 200}
    with connection.execute(_REQUESTS[place.state], values, execution_options=options) as rows:
        row: Any
        for row in rows:
            looked_at, end = looked_at + 1, row.index + row.n
            if row.state != place.state or row.index in found:
                continue
            weight = row.n * row.weight
            if len(found) == limit or (found and total + weight > MAX_IMAGES):
                return Place(place.state, row.index)
            found[row.index] = _Found(row.n, weight, place.state)
            total += weight
    return Place(place.state, end) if looked_at == LOOKED_AT else None


def _request_views(found: dict[int, _Found], images: Sequence[ImageView]) -> list[RequestView]:
    by_index = {image.index: image for image in images}
    return [
        RequestView(
            by_index[first].payload,
            request.state,
            tuple(by_index[index] for index in range(first, first + request.n)),
        )
        for first, request in found.items()
    ]
