"""Deleting a job: what it would take, whether it may be done now, and the mark that hides the job.

From the commit of the mark on, row-level security hides the job and its images from the tenant, and its exports and
files are marked as deleted. `task` then deletes it all. Functions take an open transaction and never commit.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.datasets import datasets
from services.core.db.statements import statement
from services.core.exports import exports, records
from services.core.files import files
from services.core.model import ids, states
from services.core.model.errors import Conflict, NotFound
from services.core.model.states import JobState
from services.core.queue import job_states

_COUNTED = 10_000  # images whose sizes are added up; those of the others are taken to be like them

# An unfinished job that draws from an image of this one.
_NEEDED_BY = """
SELECT min(needing.id) FROM job_inputs JOIN jobs needing ON needing.id = job_inputs.job_id
WHERE thing = :id AND kind = 'job' AND needing.finished_at IS NULL AND needing.id <> :id
"""
_STORED = statement("jobs.stored")(f"""
SELECT j.state, j.total, c.done, ({_NEEDED_BY}) AS needed_by,
       image.counted, image.bytes AS image_bytes, export.*, file.*
FROM jobs j JOIN job_counts c ON c.job_id = j.id
CROSS JOIN LATERAL (
  SELECT count(*) AS counted, coalesce(sum(bytes), 0) AS bytes FROM (
    SELECT bytes FROM results WHERE results.job_id = j.id ORDER BY index LIMIT :counted
  ) first
) image
CROSS JOIN LATERAL (
  SELECT count(*) AS exports, coalesce(sum(bytes), 0) AS export_bytes,
         min(id) FILTER (WHERE finished_at IS NULL) AS unfinished_export
  FROM exports WHERE exports.job_id = j.id AND (expires_at IS NULL OR expires_at > now())
) export
CROSS JOIN LATERAL (
  SELECT count(*) AS files, coalesce(sum(bytes), 0) AS file_bytes FROM files
  WHERE id IN (j.output_file_id, j.error_file_id) AND deleted_at IS NULL AND (expires_at IS NULL OR expires_at > now())
) file
WHERE j.id = :id AND j.tenant_id = :tenant_id
""")  # noqa: S608  our own text
# A retry or a new export holds the row shared until it is committed, and a chunk holds it too.
_LOCKED = statement("jobs.locked")("""
SELECT deleted_at, opened_at, output_file_id, error_file_id FROM jobs
WHERE id = :id AND tenant_id = :tenant_id FOR NO KEY UPDATE SKIP LOCKED
""")
_STATE = statement("jobs.state")("SELECT state FROM jobs WHERE id = :id AND tenant_id = :tenant_id")
_USED = statement("jobs.used")(f"""
SELECT (SELECT min(id) FROM exports WHERE job_id = :id AND finished_at IS NULL) AS unfinished_export,
       ({_NEEDED_BY}) AS needed_by
""")  # noqa: S608  our own text

# Pictures are copied into the catalogue when the run is written. Then nothing of it needs the job any more.
_CATALOGUE = statement("jobs.catalogue")("""
SELECT min(c.name) FROM catalogue_runs r JOIN catalogues c ON c.id = r.catalogue_id
WHERE r.job_id = :id AND r.tenant_id = :tenant_id AND r.finished_at IS NULL
""")
_FILES = statement("jobs.files")(
    "SELECT output_file_id, error_file_id FROM jobs WHERE id = :id AND tenant_id = :tenant_id"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """What deleting a job takes. `bytes` covers images, exports and files; it is an estimate if `is_estimate`.
    `refusal` says why it cannot be deleted now; None: it can."""

    images: int
    stored_images: int
    bytes: int
    is_estimate: bool
    exports: int
    files: int
    refusal: Conflict | None


def stored(connection: Connection, tenant_id: int, job_id: int) -> Stored:
    """Counts what deleting the job would take. Raises NotFound."""
    values = {"id": job_id, "tenant_id": tenant_id, "counted": _COUNTED}
    row = connection.execute(_STORED, values).one_or_none()
    if row is None:
        raise NotFound("There is no such job.")
    is_estimate = row.done > row.counted > 0
    image_bytes = row.image_bytes * row.done // row.counted if is_estimate else row.image_bytes
    return Stored(
        images=row.total,
        stored_images=row.done,
        bytes=int(image_bytes + row.export_bytes + row.file_bytes),
        is_estimate=is_estimate,
        exports=row.exports,
        files=row.files,
        refusal=_refusal(row.state, row),
    )


def check(connection: Connection, tenant_id: int, job_id: int) -> None:
    """Locks the job, unless something needs its images or prompts. For what deletes a part of it.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: it has not ended, or something else needs it.
    """
    values = {"id": job_id, "tenant_id": tenant_id}
    state = connection.execute(_STATE, values).scalar_one_or_none()
    if state is None:
        raise NotFound("There is no such job.")
    row = connection.execute(_LOCKED, values).one_or_none()
    if row is None:
        raise Conflict("The job is being changed, exported or retried at this moment; try again.", "job_in_use")
    refusal = _needed(connection, state, values)
    if refusal is None and (name := connection.execute(_CATALOGUE, values).scalar_one_or_none()) is not None:
        refusal = Conflict(f"A run of the catalogue {name} takes pictures from it.", "job_in_use")
    if refusal is not None:
        raise refusal


def delete_files(connection: Connection, tenant_id: int, job_id: int) -> None:
    """Hides the output files of a job that the caller has locked."""
    for file_id in connection.execute(_FILES, {"id": job_id, "tenant_id": tenant_id}).one():
        if file_id is not None:
            _delete_file(connection, tenant_id, file_id)


def delete(connection: Connection, tenant_id: int, job_id: int) -> None:
    """Hides the job, its exports and its output files from this commit on; a background task deletes them. An open
    draft is stopped. The transaction must be the system's, and must be rolled back after an error. A second call is not
    an error while the task is at it.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: it has not ended, or something else needs it.
    """
    values = {"id": job_id, "tenant_id": tenant_id}
    state = connection.execute(_STATE, values).scalar_one_or_none()
    if state is None:
        raise NotFound("There is no such job.")
    if state == JobState.DRAFT:  # before its row is locked: a job's own lock comes first, everywhere
        job_states.cancel(connection, tenant_id, job_id)
    row = connection.execute(_LOCKED, values).one_or_none()
    if row is None or (
        state == JobState.DRAFT and row.opened_at is not None
    ):  # finalized meanwhile, and so not stopped
        raise Conflict("The job is being changed, exported or retried at this moment; try again.", "job_in_use")
    if row.deleted_at is not None:
        return
    refusal = _needed(connection, state, values)
    if refusal is not None:
        raise refusal
    job_states.mark_deleted(connection, tenant_id, job_id)
    exports.remove_all(connection, tenant_id, job_id)
    for file_id in (row.output_file_id, row.error_file_id):
        if file_id is not None:
            _delete_file(connection, tenant_id, file_id)
    files.delete_inputs_of(connection, job_id)


def _needed(connection: Connection, state: str, values: dict[str, int]) -> Conflict | None:
    """Why the locked job cannot be deleted now."""
    refusal = _refusal(state, connection.execute(_USED, values).one())
    if refusal is None and (name := datasets.reading(connection, values["id"])) is not None:
        message = f"A version of the dataset {name} is being written from it; wait for that, or cancel it."
        refusal = Conflict(message, "export_not_ended")
    return refusal


def _refusal(state: str, used: Any) -> Conflict | None:
    if state == JobState.CANCELLING:
        return Conflict("The job is cancelling; delete it when it has ended, in a moment.", "job_not_finished")
    if state not in states.FINAL_JOB_STATES and state != JobState.DRAFT:
        return Conflict(f"The job is {state}; cancel it or let it end, then delete it.", "job_not_finished")
    if used.unfinished_export is not None:
        export = records.public_id(used.unfinished_export)
        return Conflict(f"{export} is still being written from the job; wait for it, or cancel it.", "export_not_ended")
    if used.needed_by is not None:
        other = ids.public_job(used.needed_by)
        return Conflict(f"{other} draws from its images; wait until that one has ended, or cancel it.", "job_in_use")
    return None


def _delete_file(connection: Connection, tenant_id: int, file_id: int) -> None:
    try:
        files.delete(connection, tenant_id, file_id)
    except NotFound:  # deleted before, or expired
        pass
