"""The results of a job, request by request, for the output files of batch jobs and the OpenAI routes."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.columns import Payload
from services.core.db.statements import statement
from services.core.model.states import ImageState

# OFFSET 0 forces lookups by key, request by request and image by image: a join of whole tables is never faster here.
_REQUESTS = statement("results.requests")(f"""
SELECT {columns.payload()}, s.model_revision, s.width, s.height, i.index, i.state,
       r.object_key, r.sha256, r.bytes, r.truncated, r.flagged, r.unknown_words, r.reproducibility_class, r.reused,
       r.finished_at, f.code, f.message
FROM (SELECT * FROM payloads WHERE job_id = :job_id AND index > :after ORDER BY index LIMIT :limit) p
JOIN segments s ON s.job_id = p.job_id AND s.id = p.segment_id
CROSS JOIN LATERAL (
  SELECT index, state, job_id FROM images
  WHERE images.job_id = :job_id AND images.index >= p.index AND images.index < p.index + p.n OFFSET 0
) i
LEFT JOIN LATERAL (
  SELECT * FROM results WHERE i.state = 2 AND results.job_id = :job_id AND results.index = i.index OFFSET 0
) r ON true
LEFT JOIN LATERAL (
  SELECT code, message FROM failures WHERE i.state = 3 AND failures.job_id = i.job_id AND failures.index = i.index
  ORDER BY id DESC LIMIT 1
) f ON true
ORDER BY i.index
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Stored:
    """One done image."""

    index: int
    payload: Payload
    model_revision: str
    width: int
    height: int
    object_key: str
    sha256: str
    bytes: int
    truncated: bool
    flagged: bool | None
    unknown_words: list[str]
    reproducibility_class: str
    reused: bool
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `failure` is the code and message of its first failed image, if any."""

    payload: Payload
    stored: list[Stored]
    failure: tuple[str, str] | None

    @property
    def is_done(self) -> bool:
        return len(self.stored) == self.payload.n


def page(connection: Connection, job_id: int, *, after: int = -1, limit: int) -> list[Request]:
    """The requests whose first image has an index above `after`, in order."""
    rows = connection.execute(_REQUESTS, {"job_id": job_id, "after": after, "limit": limit})
    return [_request(list(images)) for _, images in groupby(rows, lambda row: row.payload_index)]


def _request(images: list[Any]) -> Request:
    payload = columns.read_payload(images[0])
    stored = [_stored(image, payload) for image in images if image.state == ImageState.DONE]
    return Request(payload, stored, next(_failures(images), None))


def _failures(images: list[Any]) -> Iterator[tuple[str, str]]:
    for image in images:
        if image.state == ImageState.FAILED:
            yield image.code or "unknown", image.message or ""


def _stored(image: Any, payload: Payload) -> Stored:
    return Stored(
        index=image.index,
        payload=payload,
        model_revision=image.model_revision,
        width=image.width,
        height=image.height,
        object_key=image.object_key,
        sha256=bytes(image.sha256).hex(),
        bytes=image.bytes,
        truncated=image.truncated,
        flagged=image.flagged,
        unknown_words=image.unknown_words,
        reproducibility_class=image.reproducibility_class,
        reused=image.reused,
        finished_at=image.finished_at,
    )
