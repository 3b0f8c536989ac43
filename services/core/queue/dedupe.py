"""Earlier results that a job with `dedupe` may have copied, not rendered: of its tenant, of equal render key and class.

A row of results is a done image: settle writes both at once, and nothing leaves that state.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model.specs import Image, StoredImage

# The newest one of a thousand: it is kept the longest. The inner LIMIT keeps the order away from the index: a planner
# that knows little of the keys would walk the primary key backwards to the first that fits, through millions when none
# does. And it bounds a look: one picture asked for a million times would cost the square of that. Whoever finds nothing
# of their own among the thousand renders it.
_FIND = statement("dedupe.find")("""
SELECT wanted.job_id AS for_job, wanted.index AS for_index, found.index AS from_index, found.*, e.versions
FROM unnest(CAST(:job_ids AS bigint[]), CAST(:indexes AS integer[]), CAST(:tenant_ids AS integer[]),
            CAST(:render_keys AS bytea[])) AS wanted (job_id, index, tenant_id, render_key)
CROSS JOIN LATERAL (
  SELECT r.* FROM (
    SELECT * FROM results
    WHERE results.render_key = wanted.render_key AND reproducibility_class = :reproducibility_class LIMIT 1000
  ) r
  JOIN jobs ON jobs.id = r.job_id AND jobs.tenant_id = wanted.tenant_id
  ORDER BY r.job_id DESC, r.index LIMIT 1
) found
LEFT JOIN engines e ON e.id = found.engine_id
""")


def find(
    connection: Connection, wanted: Sequence[Image], reproducibility_class: str
) -> dict[tuple[int, int], StoredImage]:
    """For the (job id, index) of each wanted image the earlier one that serves as well, where there is one."""
    rows = connection.execute(
        _FIND,
        {
            "job_ids": [image.job_id for image in wanted],
            "indexes": [image.index for image in wanted],
            "tenant_ids": [image.tenant_id for image in wanted],
            "render_keys": [bytes.fromhex(image.render_key) for image in wanted],
            "reproducibility_class": reproducibility_class,
        },
    )
    return {
        (row.for_job, row.for_index): StoredImage(
            row.job_id, row.from_index, row.object_key, row.sha256, row.bytes, row.device, row.reproducibility_class,
            row.versions, row.truncated, row.flagged, tuple(row.unknown_words), row.render_seconds, row.render_key,
            row.reused,
        )
        for row in rows
    }  # fmt: skip
