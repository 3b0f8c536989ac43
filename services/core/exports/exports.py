"""Exports: a finished job's images as files for other programs. Every write about them; `errand` does the work.

What is in an export is decided by the job, its format and its options alone, so that two of them have the same bytes.
Functions take an open transaction and never commit.
"""

import json
from collections.abc import Sequence

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.exports import records
from services.core.exports.options import ExportRequest
from services.core.exports.records import Export, File, ShardPlan
from services.core.jobs import idempotency
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound

_JOB = statement("exports.job")("""
SELECT j.state, j.finished_at, j.base_url, c.done FROM jobs j JOIN job_counts c ON c.job_id = j.id
WHERE j.id = :job_id AND j.tenant_id = :tenant_id
""")
_SUBJECT = "'export/' || id"
_NEW = statement("exports.new")(f"""
WITH made AS (
  INSERT INTO exports (id, tenant_id, job_id, format, options, images_total)
  VALUES (:id, :tenant_id, :job_id, :format, CAST(:options AS jsonb), :images)
  RETURNING id, tenant_id, job_id, format
)
{log.of_each("made", "'export.created'", subject=_SUBJECT, data="jsonb_build_object('job', job_id, 'format', format)")}
""")  # noqa: S608  our own text
_KEPT = "now() + make_interval(secs => (options->>'expires_in_seconds')::double precision)"
_CANCEL = statement("exports.cancel")(f"""
WITH moved AS (
  UPDATE exports SET state = 'cancelled', finished_at = now(), expires_at = {_KEPT}
  WHERE tenant_id = :tenant_id AND id = :id AND finished_at IS NULL RETURNING id, tenant_id
)
{log.of_each("moved", "'export.cancelled'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_REMOVE = statement("exports.remove")("""
UPDATE exports SET expires_at = now(), finished_at = coalesce(finished_at, now()),
  state = CASE WHEN finished_at IS NULL THEN 'cancelled' ELSE state END
WHERE tenant_id = :tenant_id AND id = :id
""")
# A few, by lot: none waits for ever behind others, and other errands do not wait long for these.
_PENDING = statement("exports.pending")("""
SELECT id FROM exports
WHERE (finished_at IS NULL OR expires_at <= now() OR (state IN ('failed', 'cancelled') AND next_shard >= 0))
  AND id <> ALL(CAST(:besides AS bigint[]))
ORDER BY random() LIMIT :limit
""")
_PLAN = statement("exports.plan")("""
UPDATE exports SET options = options || CAST(:plan AS jsonb), images_total = :images, state = 'running'
WHERE id = :id AND finished_at IS NULL
""")
_RECORD = statement("exports.record")("""
INSERT INTO export_files (export_id, path, tenant_id, shard, bytes, sha256, images, object_key)
VALUES (:export_id, :path, :tenant_id, :shard, :bytes, :sha256, :images, :object_key)
""")
_ADVANCE = statement("exports.advance")("""
UPDATE exports SET next_shard = :shard + 1, next_index = :index, images_done = images_done + :images,
  bytes = bytes + :bytes
WHERE id = :id AND finished_at IS NULL AND next_shard = :shard
""")
_END = statement("exports.end")(f"""
WITH moved AS (
  UPDATE exports SET state = :state, error = :error, finished_at = now(), expires_at = {_KEPT}
  WHERE id = :id AND finished_at IS NULL RETURNING id, tenant_id, state
)
{log.of_each("moved", "'export.' || state", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_FORGET_FILES = statement("exports.forget_files")("""
DELETE FROM export_files WHERE export_id = :id AND path IN (
  SELECT path FROM export_files WHERE export_id = :id LIMIT :limit)
""")
_EMPTY = statement("exports.empty")("UPDATE exports SET next_shard = -1, images_done = 0, bytes = 0 WHERE id = :id")
_FORGET = statement("exports.forget")("DELETE FROM exports WHERE id = :id AND expires_at <= now()")


def create(
    connection: Connection, tenant_id: int, job_id: int, order: ExportRequest, *, base_url: str, key: str | None = None
) -> tuple[int, bool]:
    """Records an export that waits; its id, and whether this Idempotency-Key had made it before. `base_url` is what
    links to images begin with, unless the job knows better.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: the job has not finished, or has no image to export.
        IdempotencyConflict, IdempotencyBusy: the key stands for something else, or for a request under way.
    """
    job = connection.execute(_JOB, {"job_id": job_id, "tenant_id": tenant_id}).one_or_none()
    if job is None:
        raise NotFound("There is no such job.")
    if job.finished_at is None:
        raise Conflict(f"The job is {job.state}; it can be exported once it has finished.", "job_not_finished")
    if not job.done:
        raise Conflict(f"The job is {job.state} and none of its images is done.", "nothing_to_export")
    export_id = ids.new()
    if key is not None:
        digest = order.digest(job_id)
        known = idempotency.remember(connection, tenant_id, key, sha256=digest, thing=export_id, kind="export")
        if known is not None:
            return known, True
    options = order.options.model_dump() | {"base_url": job.base_url or base_url}
    values = {"id": export_id, "tenant_id": tenant_id, "job_id": job_id, "images": job.done}
    connection.execute(_NEW, values | {"format": order.format, "options": json.dumps(options)})
    return export_id, False


def cancel(connection: Connection, tenant_id: int, export_id: int) -> None:
    """Stops it after the file that is being written; what was stored is dropped. Again is no error.

    Raises:
        NotFound: no such export of this tenant.
        Conflict: it has ended in another way.
    """
    if not connection.execute(_CANCEL, {"tenant_id": tenant_id, "id": export_id}).rowcount:
        export = records.find(connection, tenant_id, export_id)
        if export.state != "cancelled":
            raise Conflict(
                f"The export is {export.state}; only one that has not ended can be cancelled.", "export_ended"
            )


def remove(connection: Connection, tenant_id: int, export_id: int) -> None:
    """Nobody sees it any more; its objects and rows are dropped soon. Raises NotFound."""
    records.find(connection, tenant_id, export_id)
    connection.execute(_REMOVE, {"tenant_id": tenant_id, "id": export_id})


def pending(connection: Connection, excluding: Sequence[int] = (), limit: int = 2) -> list[int]:
    """Exports that wait to be written, or to be dropped."""
    return list(connection.execute(_PENDING, {"besides": list(excluding), "limit": limit}).scalars())


def begin(connection: Connection, export: Export, plan: ShardPlan) -> bool:
    """What it will come to is known. False: it was cancelled meanwhile."""
    counted = {
        "splits": [[name, shards, images] for name, (shards, images) in plan.splits.items()],
        "models": plan.models,
    }
    values = {"id": export.id, "plan": json.dumps({"plan": counted}), "images": plan.images}
    return connection.execute(_PLAN, values).rowcount == 1


def record(connection: Connection, export: Export, files: list[File], *, images: int, next_index: int) -> bool:
    """A shard is stored: its files are known, and the next one begins at that index. False: it was cancelled."""
    values = {"id": export.id, "shard": export.next_shard, "index": next_index, "images": images}
    if not connection.execute(_ADVANCE, values | {"bytes": sum(file.bytes for file in files)}).rowcount:
        return False
    common = {"export_id": export.id, "tenant_id": export.tenant_id, "shard": export.next_shard}
    connection.execute(
        _RECORD,
        [
            common
            | {
                "path": file.path,
                "bytes": file.bytes,
                "sha256": file.sha256,
                "images": file.images,
                "object_key": file.object_key,
            }
            for file in files
        ],
    )
    return True


def complete(connection: Connection, export: Export) -> None:
    connection.execute(_END, {"id": export.id, "state": "completed", "error": None})


def fail(connection: Connection, export: Export, error: str) -> None:
    """For good, with a sentence for people."""
    connection.execute(_END, {"id": export.id, "state": "failed", "error": error})


def forget_files(connection: Connection, export: Export, limit: int = 10_000) -> bool:
    """Drops rows of files whose objects are gone. True: there may be more."""
    return connection.execute(_FORGET_FILES, {"id": export.id, "limit": limit}).rowcount == limit


def forget(connection: Connection, export: Export) -> None:
    """Nothing of it is stored any more: an expired one is gone, of another one the row tells what became of it."""
    connection.execute(_EMPTY, {"id": export.id})
    connection.execute(_FORGET, {"id": export.id})
