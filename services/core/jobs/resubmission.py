"""Requests that would make a job's images again: what to submit, field by field."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.columns import Payload
from services.core.db.statements import statement

# A revision may have several names.
_READ = f"""
SELECT {columns.payload()}, coalesce(m.name, s.model_revision) AS model, s.width, s.height, s.steps,
       CASE WHEN m.name IS NOT NULL THEN s.reproducibility_class ELSE '' END AS reproducibility_class
FROM (SELECT * FROM payloads WHERE {{which}} ORDER BY index {{way}} LIMIT :limit) p
JOIN segments s ON s.job_id = :job_id AND s.id = p.segment_id
LEFT JOIN LATERAL (SELECT name FROM models WHERE revision = s.model_revision ORDER BY name LIMIT 1) m ON true
ORDER BY p.index
"""  # noqa: S608  our own text
_PAGE = statement("resubmission.page")(_READ.format(which="job_id = :job_id AND index > :after", way="ASC"))
_ONE = statement("resubmission.one")(_READ.format(which="job_id = :job_id AND index <= :index", way="DESC"))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A request as it was stored, and what its images were rendered with."""

    payload: Payload
    model: str
    width: int
    height: int
    steps: int
    reproducibility_class: str = ""  # that was asked for; a class of an earlier revision cannot be asked for again

    def request(self, image: int | None = None) -> dict[str, Any]:
        """What to submit for all its images again, or for the one of that index."""
        payload = self.payload
        found: dict[str, Any] = {"prompt": payload.prompt}
        if payload.negative_prompt:
            found["negative_prompt"] = payload.negative_prompt
        if payload.custom_id is not None:
            found["custom_id"] = payload.custom_id
        found["seed"] = payload.seed if image is None else payload.seed_of(image)
        if image is None and payload.n > 1:
            found["n"] = payload.n
        found |= {"model": self.model, "size": f"{self.width}x{self.height}", "num_inference_steps": self.steps}
        found |= {"guidance_scale": payload.guidance_scale, "output_format": payload.output_format}
        if payload.image is not None:
            found |= {"image": payload.image, "strength": payload.strength}
        if self.reproducibility_class:
            found["reproducibility_class"] = self.reproducibility_class
        if payload.output_compression is not None:
            found["output_compression"] = payload.output_compression
        if payload.metadata:
            found["metadata"] = payload.metadata
        return found


def page(connection: Connection, job_id: int, *, after: int, limit: int) -> list[Rendered]:
    """The next requests behind the one at `after`, of a job that the transaction sees."""
    return _read(connection.execute(_PAGE, {"job_id": job_id, "after": after, "limit": limit}))


def of_image(connection: Connection, job_id: int, index: int) -> Rendered | None:
    """The request of an image that the transaction sees."""
    found = _read(connection.execute(_ONE, {"job_id": job_id, "index": index, "limit": 1}))
    return found[0] if found else None


def _read(rows: Any) -> list[Rendered]:
    return [
        Rendered(columns.read_payload(row), row.model, row.width, row.height, row.steps, row.reproducibility_class)
        for row in rows
    ]
