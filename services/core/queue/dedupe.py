"""Finds earlier results that a job with `dedupe` may copy instead of rendering.

They belong to the same tenant and have the same render key and reproducibility class; where pictures are checked, they
were checked, too. Every row of results is a done
image: settle writes both at once, and an image never leaves that state.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model.specs import Image, StoredImage

# Takes the newest of up to 1,000 results, because it will be kept the longest. The inner LIMIT has two reasons. It
# separates ORDER BY from the index on the key: without statistics the planner would walk the primary key backwards,
# through millions of rows if there is no match. And it bounds the cost if one image is requested a million times. If
# none of the 1,000 will do, the image is rendered.
_FIND = statement("dedupe.find")("""
SELECT wanted.job_id AS for_job, wanted.index AS for_index, found.index AS from_index,
       found.job_id, found.object_key, found.sha256, found.bytes, found.device, found.reproducibility_class, e.versions,
       found.truncated, found.flagged, found.unknown_words, found.render_seconds, found.render_key, found.reused,
       found.scores, found.phash
FROM unnest(CAST(:job_ids AS bigint[]), CAST(:indexes AS integer[]), CAST(:tenant_ids AS integer[]),
            CAST(:render_keys AS bytea[])) AS wanted (job_id, index, tenant_id, render_key)
CROSS JOIN LATERAL (
  SELECT r.* FROM (
    SELECT * FROM results
    WHERE results.render_key = wanted.render_key AND reproducibility_class = :reproducibility_class LIMIT 1000
  ) r
  JOIN jobs ON jobs.id = r.job_id AND jobs.tenant_id = wanted.tenant_id AND jobs.deleted_at IS NULL
    AND jobs.objects_deleted_at IS NULL
  WHERE r.flagged IS NOT NULL OR NOT CAST(:checked AS boolean)
  ORDER BY r.job_id DESC, r.index LIMIT 1
) found
LEFT JOIN engines e ON e.id = found.engine_id
""")


def find(
    connection: Connection, wanted: Sequence[Image], reproducibility_class: str, *, checked: bool = False
) -> dict[tuple[int, int], StoredImage]:
    """Maps the (job id, index) of a wanted image to an equal earlier one. Images without one are left out. `checked`:
    only those with a safety checker's verdict will do."""
    rows = connection.execute(
        _FIND,
        {
            "job_ids": [image.job_id for image in wanted],
            "indexes": [image.index for image in wanted],
            "tenant_ids": [image.tenant_id for image in wanted],
            "render_keys": [bytes.fromhex(image.render_key) for image in wanted],
            "reproducibility_class": reproducibility_class,
            "checked": checked,
        },
    )
    return {
        (row.for_job, row.for_index): StoredImage(
            row.job_id, row.from_index, row.object_key, row.sha256, row.bytes, row.device, row.reproducibility_class,
            row.versions, row.truncated, row.flagged, tuple(row.unknown_words), row.render_seconds, row.render_key,
            row.reused, row.scores, row.phash,
        )
        for row in rows
    }  # fmt: skip
