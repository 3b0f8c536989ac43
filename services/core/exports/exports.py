"""Exports: a finished job's images as files for other programs. Every write of their tables; `task` does the work.

The content of an export depends only on the job, the format, the options and the marks that the images have when the
export begins, so equal exports have the same bytes.
Functions take an open transaction and never commit.
"""

import json
import zlib
from collections.abc import Sequence

from sqlalchemy import Connection

from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.exports import records
from services.core.exports.options import ExportRequest
from services.core.exports.records import Export, File, ShardPlan
from services.core.jobs import idempotency
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound
from services.core.tenants import admission

_JOB = statement("exports.job")("""
SELECT j.state, j.finished_at, j.base_url, c.done, j.objects_deleted_at,
  CAST(:mark AS text) IS NULL OR EXISTS (SELECT FROM marks WHERE marks.job_id = j.id AND mark = :mark) AS has_marked
FROM jobs j JOIN job_counts c ON c.job_id = j.id
WHERE j.id = :job_id AND j.tenant_id = :tenant_id FOR SHARE OF j
""")  # until the export is committed, nobody deletes the job
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
_REMOVE = f"""
WITH moved AS (
  UPDATE exports SET expires_at = now(), finished_at = coalesce(finished_at, now()),
    state = CASE WHEN finished_at IS NULL THEN 'cancelled' ELSE state END
  WHERE tenant_id = :tenant_id AND (expires_at IS NULL OR expires_at > now()) AND {{which}} RETURNING id, tenant_id
)
{log.of_each("moved", "'export.deleted'", subject=_SUBJECT)}
"""  # noqa: S608  our own text
_REMOVE_ONE = statement("exports.remove_one")(_REMOVE.format(which="id = :id"))
_REMOVE_ALL = statement("exports.remove_all")(_REMOVE.format(which="job_id = :job_id"))
# A tenant's own exports in random order, among those that come next: none waits for ever behind one of many slices.
_PENDING = statement("exports.pending")(
    turns.first_of_each("""
  SELECT id FROM (
    (SELECT id FROM exports
     WHERE tenant_id = t.id AND finished_at IS NULL AND id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY id LIMIT :first)
    UNION
    (SELECT id FROM exports
     WHERE tenant_id = t.id AND expires_at <= now() AND id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY expires_at LIMIT :first)
    UNION
    (SELECT id FROM exports
     WHERE tenant_id = t.id AND state IN ('failed', 'cancelled') AND next_shard >= 0
       AND id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY id LIMIT :first)
  ) either ORDER BY random() LIMIT :first
""")
)
_PLAN = statement("exports.plan")("""
UPDATE exports SET options = options || CAST(:plan AS jsonb), images_total = :images, marks = :marks,
  state = 'running'
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
    connection: Connection, tenant_id: int, job_id: int, asked: ExportRequest, *, base_url: str, key: str | None = None
) -> tuple[int, bool]:
    """Records a queued export. Returns its id, and whether this Idempotency-Key had already created it. Links to images
    begin with the job's own base URL or else with `base_url`.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: the job has not finished, or none of its images is done.
        QuotaExceeded: the tenant's bytes stored are used up.
        IdempotencyConflict, IdempotencyGone, IdempotencyBusy: the key was used for another request or for what is
            deleted, or is in use right now.
    """
    mark = asked.options.mark
    job = connection.execute(_JOB, {"job_id": job_id, "tenant_id": tenant_id, "mark": mark}).one_or_none()
    if job is None:
        raise NotFound("There is no such job.")
    if job.finished_at is None:
        raise Conflict(f"The job is {job.state}; it can be exported once it has finished.", "job_not_finished")
    if not job.done:
        raise Conflict(f"The job is {job.state} and none of its images is done.", "nothing_to_export")
    if job.objects_deleted_at is not None:
        raise Conflict("The job's images were deleted by the retention rules.", "objects_deleted")
    if not job.has_marked:
        raise Conflict(f"No image of the job is {mark}: mark some, or leave the option mark out.", "nothing_to_export")
    export_id = ids.new()
    if key is not None:
        digest = asked.digest(job_id)
        known = idempotency.remember(connection, tenant_id, key, sha256=digest, thing=export_id, kind="export")
        if known is not None:
            return known, True
    admission.ask_storage(connection, tenant_id)
    options = asked.options.model_dump() | {"base_url": job.base_url or base_url}
    values = {"id": export_id, "tenant_id": tenant_id, "job_id": job_id, "images": job.done}
    connection.execute(_NEW, values | {"format": asked.format, "options": json.dumps(options)})
    return export_id, False


def cancel(connection: Connection, tenant_id: int, export_id: int) -> None:
    """Stops the export after the file that is being written; its stored files are deleted. A second call is not an
    error.

    Raises:
        NotFound: no such export of this tenant.
        Conflict: it has already completed or failed.
    """
    if not connection.execute(_CANCEL, {"tenant_id": tenant_id, "id": export_id}).rowcount:
        export = records.find(connection, tenant_id, export_id)
        if export.state != "cancelled":
            raise Conflict(
                f"The export is {export.state}; only one that has not ended can be cancelled.", "export_ended"
            )


def remove(connection: Connection, tenant_id: int, export_id: int) -> None:
    """Hides the export at once; its objects and rows are deleted soon. Raises NotFound."""
    records.find(connection, tenant_id, export_id)
    connection.execute(_REMOVE_ONE, {"tenant_id": tenant_id, "id": export_id})


def remove_all(connection: Connection, tenant_id: int, job_id: int) -> None:
    """Hides every export of the job, as `remove` does with one."""
    connection.execute(_REMOVE_ALL, {"tenant_id": tenant_id, "job_id": job_id})


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Exports that wait to be written or deleted."""
    return turns.waiting(connection, _PENDING, excluding, busy)


def begin(connection: Connection, export: Export, plan: ShardPlan) -> bool:
    """Records the plan of an export with the marks that it was made with, and starts it. False: it was cancelled in the
    meantime."""
    counted = {
        "splits": [[name, shards, images] for name, (shards, images) in plan.splits.items()],
        "models": plan.models,
        "formats": plan.formats,
        "licenses": {name: found.as_json() for name, found in plan.licenses.items()},
        "columns": plan.columns,
    }
    packed = None if export.marks is None else zlib.compress(export.marks)
    values = {"id": export.id, "plan": json.dumps({"plan": counted}), "images": plan.images, "marks": packed}
    return connection.execute(_PLAN, values).rowcount == 1


def record(connection: Connection, export: Export, files: list[File], *, images: int, next_index: int) -> bool:
    """Records the files of a stored shard; the next one begins at `next_index`. False: the export was cancelled."""
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
    """Ends the export as failed, with a sentence for users."""
    connection.execute(_END, {"id": export.id, "state": "failed", "error": error})


def forget_files(connection: Connection, export: Export, limit: int = 10_000) -> bool:
    """Deletes rows of files whose objects are deleted. True: there may be more."""
    return connection.execute(_FORGET_FILES, {"id": export.id, "limit": limit}).rowcount == limit


def forget(connection: Connection, export: Export) -> None:
    """Records that nothing is stored any more. Deletes the row of an expired export; other rows keep their state."""
    connection.execute(_EMPTY, {"id": export.id})
    connection.execute(_FORGET, {"id": export.id})
