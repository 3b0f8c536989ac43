"""New images: one queued row each, which the database makes from the payloads of their requests."""

from sqlalchemy import Connection

from services.core.db import partitions
from services.core.db.statements import statement


def spread(connection: Connection, job_id: int, *, first: int = 0) -> None:
    """Inserts the queued images of the job's payloads from index `first` on."""
    images_leaf = partitions.leaf(connection, "images", job_id)
    spreading = statement("images.spread")(
        f"INSERT INTO {images_leaf} (job_id, index, segment_id) "  # noqa: S608  our own text
        "SELECT job_id, index + nth, segment_id FROM payloads CROSS JOIN generate_series(0, n - 1) AS nth "
        "WHERE job_id = :job_id AND index >= :first ORDER BY index"
    )
    connection.execute(spreading, {"job_id": job_id, "first": first})
