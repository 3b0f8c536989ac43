"""Files: the input files that clients upload and the output files of their jobs. The bytes are in the object store.

The object is stored first, then its row is written. If the process dies in between, an object without a row is left
over. A deleted or expired file is hidden at once; a background task deletes its object and then its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, TextClause

from services.core.crash_points import crash_point
from services.core.db import turns
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound
from services.core.model.specs import Digest
from services.core.storage.contract import ImageStore
from services.core.tenants import admission

PURPOSES = ("batch", "batch_output", "vision")
_SUBJECT = "'file/' || id"
_NEW = statement("files.new")(f"""
WITH made AS (
  INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key, job_id, expires_at)
  VALUES (:id, :tenant_id, :purpose, :filename, :bytes, :sha256, :object_key, :job_id,
          now() + make_interval(secs => :expires_seconds))
  RETURNING id, tenant_id, purpose
)
{log.of_each("made", "'file.created'", subject=_SUBJECT, data="jsonb_build_object('purpose', purpose)")}
""")  # noqa: S608  our own text
_SEEN = "deleted_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
_COLUMNS = "id, tenant_id, purpose, filename, bytes, sha256, object_key, job_id, created_at, expires_at"
_FIND = statement("files.find")(f"""
SELECT {_COLUMNS} FROM files WHERE tenant_id = :tenant_id AND id = :id AND {_SEEN}
""")  # noqa: S608  our own text


def _page(name: str, purposes: Sequence[str], *, newest_first: bool) -> TextClause:
    """Purpose by purpose, and each written out, so that the planner takes the index by purpose for a rare one."""
    behind, order = ("<", "DESC") if newest_first else (">", "ASC")
    pages = (
        f"(SELECT {_COLUMNS} FROM files WHERE tenant_id = :tenant_id AND purpose = '{purpose}' AND {_SEEN} "  # noqa: S608
        f"AND id {behind} :after ORDER BY id {order} LIMIT :limit)"
        for purpose in purposes
    )
    union = " UNION ALL ".join(pages)
    return statement(f"files.{name}")(f"SELECT * FROM ({union}) f ORDER BY id {order} LIMIT :limit")  # noqa: S608


_NEWEST_FIRST, _OLDEST_FIRST = (
    {
        None: _page(name, PURPOSES, newest_first=newest_first),
        **{purpose: _page(f"{name}_{purpose}", [purpose], newest_first=newest_first) for purpose in PURPOSES},
    }
    for name, newest_first in (("newest_first", True), ("oldest_first", False))
)
_OF_IDS = statement("files.of_ids")(f"""
SELECT {_COLUMNS} FROM files
WHERE tenant_id = :tenant_id AND id = ANY(CAST(:ids AS bigint[])) AND purpose = :purpose AND {_SEEN}
""")  # noqa: S608  our own text
# A submission that needs the file holds it shared until it is recorded; the next statement then sees what it needs.
_LOCK = statement("files.lock")("SELECT FROM files WHERE tenant_id = :tenant_id AND id = :id FOR NO KEY UPDATE")
_NEEDED = """
EXISTS (SELECT FROM job_inputs needed JOIN jobs ON jobs.id = needed.job_id
        WHERE needed.thing = {id} AND needed.kind = 'file' AND jobs.finished_at IS NULL)
"""
_IN_USE = statement("files.in_use")(f"""
SELECT EXISTS (SELECT FROM jobs WHERE input_file_id = :id AND tenant_id = :tenant_id
               AND finished_at IS NULL AND state = 'validating') AS validating,
       {_NEEDED.format(id=":id")} AS needed
""")  # noqa: S608  our own text
_READER = statement("files.reader")("""
SELECT name FROM catalogues
WHERE tenant_id = :tenant_id AND deleted_at IS NULL AND (
  (file_id = :id AND definition->'source' ? 'file') OR EXISTS (
    SELECT FROM catalogue_runs r WHERE r.tenant_id = :tenant_id AND r.finished_at IS NULL AND r.file_id = :id
    AND r.catalogue_id = catalogues.id AND r.definition->'source' ? 'file'))
ORDER BY name LIMIT 1
""")
_DELETE = statement("files.delete")(f"""
WITH gone AS (
  UPDATE files SET deleted_at = now() WHERE tenant_id = :tenant_id AND id = :id AND {_SEEN} RETURNING id, tenant_id
)
{log.of_each("gone", "'file.deleted'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
# Pictures that came with a job's own requests, unless another job that has not ended draws from them.
_LOCK_INPUTS = statement("files.lock_inputs")("""
SELECT files.id FROM job_inputs mine JOIN files ON files.id = mine.thing AND files.job_id = mine.job_id
WHERE mine.job_id = :job_id AND mine.kind = 'file' AND deleted_at IS NULL ORDER BY files.id
FOR NO KEY UPDATE OF files
""")
_DELETE_INPUTS = statement("files.delete_inputs")(f"""
WITH gone AS (
  UPDATE files SET deleted_at = now()
  WHERE id = ANY(CAST(:ids AS bigint[])) AND {_SEEN} AND NOT {_NEEDED.format(id="files.id")} RETURNING id, tenant_id
)
{log.of_each("gone", "'file.deleted'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_KEEP_FOR = statement("files.keep_for")("""
UPDATE files SET expires_at = NULL, job_id = :job_id
WHERE id = ANY(CAST(:ids AS bigint[])) AND job_id IS NOT NULL AND tenant_id = :tenant_id AND expires_at > now()
  AND purpose = 'vision'
""")
_DOOMED = statement("files.doomed")(
    turns.first_of_each(f"""
  (SELECT id FROM files
   WHERE tenant_id = t.id AND deleted_at IS NOT NULL AND id <> ALL(CAST(:excluding AS bigint[]))
   ORDER BY id LIMIT :first)
  UNION ALL
  (SELECT id FROM files
   WHERE tenant_id = t.id AND deleted_at IS NULL AND expires_at < now()
     AND id <> ALL(CAST(:excluding AS bigint[])) AND NOT EXISTS (
       SELECT FROM jobs WHERE input_file_id = files.id AND jobs.tenant_id = t.id AND state = 'validating')
     AND NOT {_NEEDED.format(id="files.id")}
   ORDER BY expires_at LIMIT :first)
""")  # noqa: S608  our own text
)
_KEY = statement("files.key")("SELECT object_key FROM files WHERE id = :id")
_FORGET = statement("files.forget")(f"""
WITH gone AS (DELETE FROM files WHERE id = :id RETURNING id, tenant_id, deleted_at),
expired AS (SELECT id, tenant_id FROM gone WHERE deleted_at IS NULL)
{log.of_each("expired", "'file.expired'", subject=_SUBJECT)}
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class File:
    """`purpose` is "batch" for an uploaded file of requests, "batch_output" for a result and "vision" for an input
    picture. `sha256` is 32 raw bytes."""

    id: int
    tenant_id: int
    purpose: str
    filename: str
    bytes: int
    sha256: Digest
    object_key: str
    job_id: int | None
    created_at: datetime
    expires_at: datetime | None


def public_id(file_id: int) -> str:
    return ids.public("file-", file_id)


def parse_id(public: str) -> int:
    """The inverse of `public_id`. Raises NotFound if the text is not a file's id."""
    return ids.parse("file-", public, "file")


def object_name(tenant_id: int, file_id: int) -> str:
    return f"files/{tenant_id}/{public_id(file_id)}"


def record(
    connection: Connection,
    file_id: int,
    *,
    tenant_id: int,
    purpose: str,
    filename: str,
    size: int,
    sha256: bytes,
    key: str,
    job_id: int | None = None,
    expires_seconds: int | None = None,
    is_new: bool = True,
) -> None:
    """Records a stored object as a file. What the tenant sent passes admission, unless it did so before: `is_new`.

    Raises:
        TenantSuspended, QuotaExceeded: now, or when the transaction would be committed.
    """
    values = {"id": file_id, "tenant_id": tenant_id, "purpose": purpose, "filename": filename, "bytes": size}
    more = {"sha256": sha256, "object_key": key, "job_id": job_id, "expires_seconds": expires_seconds}
    connection.execute(_NEW, values | more)
    if purpose != "batch_output" and is_new:
        admission.ask_bytes(connection, tenant_id, size)


def find(connection: Connection, tenant_id: int, file_id: int) -> File:
    """Raises NotFound: the tenant has no such file, or it was deleted or has expired."""
    row = connection.execute(_FIND, {"tenant_id": tenant_id, "id": file_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such file.")
    return _file(row)


def of_ids(connection: Connection, tenant_id: int, file_ids: Sequence[int], purpose: str) -> list[File]:
    """Those of the files that the tenant has, of that purpose."""
    values = {"tenant_id": tenant_id, "ids": list(file_ids), "purpose": purpose}
    return [_file(row) for row in connection.execute(_OF_IDS, values)] if file_ids else []


def page(
    connection: Connection, tenant_id: int, *, after: int | None, limit: int, newest_first: bool, purpose: str | None
) -> list[File]:
    if after is None:
        after = ids.LIMIT - 1 if newest_first else -1
    values = {"tenant_id": tenant_id, "after": after, "limit": limit}
    page = (_NEWEST_FIRST if newest_first else _OLDEST_FIRST).get(purpose)
    return [] if page is None else [_file(row) for row in connection.execute(page, values)]


def delete(connection: Connection, tenant_id: int, file_id: int) -> None:
    """Hides the file from this commit on; a background task deletes it.

    Raises:
        NotFound: no such file of this tenant.
        Conflict: a job is validating it right now, or a catalogue reads it, or an unfinished job draws from it
            (`file_in_use`).
    """
    values = {"tenant_id": tenant_id, "id": file_id}
    connection.execute(_LOCK, values)
    used = connection.execute(_IN_USE, values).one()
    if used.validating:
        raise Conflict("The file is being validated; it can be deleted when that is over.")
    if used.needed:
        raise Conflict("A job draws images from this file; it can be deleted when the job has ended.", "file_in_use")
    reader = connection.execute(_READER, values).scalar_one_or_none()
    if reader is not None:
        message = f"The catalogue {reader} reads this file; upload another one for it, or delete the catalogue, first."
        raise Conflict(message, "file_in_use")
    if not connection.execute(_DELETE, values).rowcount:
        raise NotFound("There is no such file.")


def delete_inputs_of(connection: Connection, job_id: int) -> None:
    """Hides the input pictures that came with the requests of a job that is deleted."""
    found = list(connection.execute(_LOCK_INPUTS, {"job_id": job_id}).scalars())
    if found:
        connection.execute(_DELETE_INPUTS, {"ids": found})


def keep_for(connection: Connection, tenant_id: int, job_id: int, file_ids: Sequence[int]) -> None:
    """Those of the files that were stored before there was a job to keep them, this one or another that had no use for
    them, now stay for as long as this job does."""
    connection.execute(_KEEP_FOR, {"tenant_id": tenant_id, "job_id": job_id, "ids": list(file_ids)})


def doomed(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Hidden files whose objects are not deleted yet."""
    return turns.waiting(connection, _DOOMED, excluding, busy)


def drop(store: ImageStore, file_id: int, lease: Lease) -> None:
    """Deletes the object, then the row. If the process dies in between, the row makes another one continue."""
    with lease.begin() as connection:
        key = connection.execute(_KEY, {"id": file_id}).scalar_one_or_none()
    if key is not None:
        store.drop(key)
        crash_point("file.dropped")
        with lease.begin() as connection:
            connection.execute(_FORGET, {"id": file_id})


def _file(row: Any) -> File:
    return File(
        row.id, row.tenant_id, row.purpose, row.filename, row.bytes, bytes(row.sha256), row.object_key, row.job_id,
        row.created_at, row.expires_at,
    )  # fmt: skip
