"""The attempts at one image that did not make it: each that failed, and each that was lost with its worker's lease."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement

MOST = 100
# A crash that makes an image poison is recorded as both: of a claim the newest record is taken.
_OF_IMAGE = statement("attempts.of_image")("""
SELECT DISTINCT ON (claim_id) code, message, worker_id AS worker, device, claimed_at AS began, failed_at AS ended,
       batch_images
FROM (
  SELECT * FROM failures WHERE job_id = :job_id AND index = :index ORDER BY id DESC LIMIT :most
) newest
ORDER BY claim_id, id DESC
""")


@dataclass(frozen=True, slots=True)
class Attempt:
    """`device` names host and device. `began`: when the worker claimed the image, as one of `batch_images` in its
    claim; of a crash they are those that were being rendered. The release before recorded neither worker nor begin."""

    code: str
    message: str
    worker: str | None
    device: str
    began: datetime | None
    ended: datetime
    batch_images: int

    @property
    def is_lost(self) -> bool:
        """The image was not to blame: its worker's lease ran out."""
        return self.code == "lost"


def of_image(connection: Connection, job_id: int, index: int) -> list[Attempt]:
    """The newest MOST attempts that did not make it, oldest first, at an image that the transaction sees."""
    rows = connection.execute(_OF_IMAGE, {"job_id": job_id, "index": index, "most": MOST})
    return [Attempt(*row) for row in rows]
