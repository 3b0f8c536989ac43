"""Uploads: large files that arrive in parts, in any order, and become a file when the client completes them."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.crash_points import crash_point
from services.core.db import turns
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.files import files
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound, PressworkError
from services.core.storage.contract import ImageStore
from services.core.tenants import admission

LIFE_SECONDS = 3600
_SUBJECT = "'upload/' || id"
_NEW = statement("uploads.new")(f"""
WITH made AS (
  INSERT INTO uploads (id, tenant_id, purpose, filename, bytes, file_expires_seconds, expires_at)
  VALUES (:id, :tenant_id, :purpose, :filename, :bytes, :file_expires_seconds, now() + make_interval(secs => :life))
  RETURNING id, tenant_id, bytes
)
{log.of_each("made", "'upload.created'", subject=_SUBJECT, data="jsonb_build_object('bytes', bytes)")}
""")  # noqa: S608  our own text


def _ends(state: str, more: str = "", only: str = "") -> str:
    """The statement that ends a pending upload so, and logs it."""
    return f"""
WITH moved AS (
  UPDATE uploads SET state = '{state}'{more} WHERE id = :id AND state = 'pending'{only} RETURNING id, tenant_id
)
{log.of_each("moved", f"'upload.{state}'", subject=_SUBJECT)}
"""  # noqa: S608  our own text


_FIND_ANY = """
SELECT id, tenant_id, purpose, filename, bytes, state, file_id, file_expires_seconds, created_at, expires_at,
       expires_at < now() AS overdue
FROM uploads WHERE tenant_id = :tenant_id AND id = :id
"""
_FIND = statement("uploads.find")(_FIND_ANY)
_LOCK = statement("uploads.lock")(_FIND_ANY + "FOR UPDATE")
_TAKEN = statement("uploads.taken")("""
SELECT coalesce(sum(bytes), 0) AS bytes, min(id) FILTER (WHERE sha256 = :sha256) AS same
FROM upload_parts WHERE upload_id = :id
""")
_NEW_PART = statement("uploads.new_part")("""
INSERT INTO upload_parts (id, upload_id, tenant_id, bytes, sha256, object_key)
VALUES (:id, :upload_id, :tenant_id, :bytes, :sha256, :object_key)
""")
_PARTS = statement("uploads.parts")("SELECT id, bytes, sha256, object_key FROM upload_parts WHERE upload_id = :id")
_COMPLETE = statement("uploads.complete")(_ends("completed", more=", file_id = :file_id"))
_CANCEL = statement("uploads.cancel")(_ends("cancelled"))
_OVER = statement("uploads.over")(
    turns.first_of_each("""
  (SELECT DISTINCT upload_id AS id FROM upload_parts
   WHERE tenant_id = t.id AND upload_id <> ALL(CAST(:excluding AS bigint[]))
     AND EXISTS (SELECT FROM uploads WHERE uploads.id = upload_id AND state <> 'pending') LIMIT :first)
  UNION ALL
  (SELECT id FROM uploads
   WHERE tenant_id = t.id AND state = 'pending' AND expires_at < now() AND id <> ALL(CAST(:excluding AS bigint[]))
   ORDER BY expires_at LIMIT :first)
""")
)
_EXPIRE = statement("uploads.expire")(_ends("expired", only=" AND expires_at < now()"))
_IS_OVER = statement("uploads.is_over")("SELECT state <> 'pending' FROM uploads WHERE id = :id")
_FORGET_PARTS = statement("uploads.forget_parts")("DELETE FROM upload_parts WHERE upload_id = :id")


class InvalidParts(PressworkError):
    """The parts do not make up the file that the upload announced."""


@dataclass(frozen=True, slots=True)
class Upload:
    id: int
    tenant_id: int
    purpose: str
    filename: str
    bytes: int
    state: str
    file_id: int | None
    file_expires_seconds: int | None
    created_at: datetime
    expires_at: datetime


def public_id(upload_id: int) -> str:
    return ids.public("upload_", upload_id)


def parse_id(public: str) -> int:
    return ids.parse("upload_", public, "upload")


def part_id(number: int) -> str:
    return ids.public("part_", number)


def part_name(tenant_id: int, upload_id: int, part: int) -> str:
    return f"uploads/{tenant_id}/{public_id(upload_id)}/{part_id(part)}"


def create(
    connection: Connection,
    tenant_id: int,
    *,
    purpose: str,
    filename: str,
    size: int,
    file_expires_seconds: int | None,
) -> Upload:
    """Creates an upload that stays open for an hour. `size` is that of the whole file, in bytes. Raises TenantSuspended
    or QuotaExceeded: there is no room for that."""
    number = ids.new()
    values = {"id": number, "tenant_id": tenant_id, "purpose": purpose, "filename": filename, "bytes": size}
    more = {"file_expires_seconds": file_expires_seconds, "life": LIFE_SECONDS}
    admission.look(connection, tenant_id, spooled=size)
    connection.execute(_NEW, values | more)
    return find(connection, tenant_id, number)


def find(connection: Connection, tenant_id: int, upload_id: int) -> Upload:
    row = connection.execute(_FIND, {"tenant_id": tenant_id, "id": upload_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such upload.")
    return _upload(row)


def add_part(
    connection: Connection, tenant_id: int, upload_id: int, *, part: int, size: int, sha256: bytes, key: str
) -> int:
    """Records a part whose object is stored. Returns its id: that of the part with the same bytes, if there is one, so
    that a part which is sent again after a lost answer counts once. Then the new object is not needed.

    Raises:
        NotFound, Conflict: there is no such upload, or it is not open.
        InvalidParts: the parts exceed the announced size.
        TenantSuspended, QuotaExceeded: now, or when the transaction would be committed.
    """
    upload = _lock_pending(connection, tenant_id, upload_id)
    taken = connection.execute(_TAKEN, {"id": upload_id, "sha256": sha256}).one()
    if taken.same is not None:
        return int(taken.same)
    if taken.bytes + size > upload.bytes:
        raise InvalidParts(f"The parts come to {taken.bytes + size:,} bytes; the upload announced {upload.bytes:,}.")
    values = {"id": part, "upload_id": upload_id, "tenant_id": tenant_id, "bytes": size}
    connection.execute(_NEW_PART, values | {"sha256": sha256, "object_key": key})
    admission.ask_bytes(connection, tenant_id, size)
    return part


def complete(
    database: Database, store: ImageStore, tenant_id: int, upload_id: int, *, parts: Sequence[str], md5: str | None
) -> Upload:
    """Joins the parts, in the given order, to a file. A part whose bytes come several times is named as often.
    Repeating it after a success returns the same upload.

    Raises:
        NotFound, Conflict: there is no such upload, or it is not open.
        InvalidParts: a part belongs to another upload, or the size or the MD5 is not the announced one.
    """
    with database.begin(tenant_id) as connection:
        upload = find(connection, tenant_id, upload_id)
        if upload.state == "completed":
            return upload
        _lock_pending(connection, tenant_id, upload_id)
        known = {part_id(row.id): row for row in connection.execute(_PARTS, {"id": upload_id})}
    if strangers := [part for part in parts if part not in known]:
        raise InvalidParts(f"{strangers[0][:40]!r} is not a part of this upload.")
    if (size := sum(known[part].bytes for part in parts)) != upload.bytes:
        raise InvalidParts(f"The parts come to {size:,} bytes; the upload announced {upload.bytes:,}.")
    file_id = ids.new()
    key = store.key(files.object_name(tenant_id, file_id))
    sha256 = _join(store, [known[part].object_key for part in parts], key, md5)
    crash_point("upload.joined")
    try:
        with database.begin(tenant_id) as connection:
            _lock_pending(connection, tenant_id, upload_id)
            files.record(
                connection, file_id, tenant_id=tenant_id, purpose=upload.purpose, filename=upload.filename, size=size,
                sha256=sha256, key=key, expires_seconds=upload.file_expires_seconds, is_new=False,
            )  # fmt: skip
            connection.execute(_COMPLETE, {"id": upload_id, "file_id": file_id})
            return find(connection, tenant_id, upload_id)
    except Conflict:  # another request was faster, or the hour is over
        store.drop(key)
        raise


def cancel(connection: Connection, tenant_id: int, upload_id: int) -> Upload:
    """Closes the upload: it accepts no more parts. A second call is not an error; raises Conflict if it is
    completed."""
    upload = find(connection, tenant_id, upload_id)
    if upload.state == "completed":
        raise Conflict("The upload is completed; delete its file instead.")
    connection.execute(_CANCEL, {"id": upload_id})
    return find(connection, tenant_id, upload_id)


def over(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Uploads that are out of time, and ended ones whose parts are not deleted yet."""
    return turns.waiting(connection, _OVER, excluding, busy)


def drop(store: ImageStore, upload_id: int, lease: Lease) -> None:
    """Deletes the objects of the parts, then their rows."""
    with lease.begin() as connection:
        connection.execute(_EXPIRE, {"id": upload_id})
        if not connection.execute(_IS_OVER, {"id": upload_id}).scalar_one():  # the clock was set back
            return
        keys = [row.object_key for row in connection.execute(_PARTS, {"id": upload_id})]
    for key in keys:
        store.drop(key)
        lease.keep()
    crash_point("upload.dropped")
    with lease.begin() as connection:
        connection.execute(_FORGET_PARTS, {"id": upload_id})


def _lock_pending(connection: Connection, tenant_id: int, upload_id: int) -> Upload:
    row = connection.execute(_LOCK, {"tenant_id": tenant_id, "id": upload_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such upload.")
    if row.state != "pending" or row.overdue:
        state = row.state if row.state != "pending" else "expired"
        raise Conflict(f"The upload is {state}; only a pending one takes parts and can be completed.")
    return _upload(row)


def _join(store: ImageStore, keys: Sequence[str], target: str, md5: str | None) -> bytes:
    """Stores the parts as one object. Returns its sha256."""
    digest, checksum = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with tempfile.TemporaryFile() as file:
        for key in keys:
            for chunk in store.stream(key):
                file.write(chunk)
                digest.update(chunk)
                checksum.update(chunk)
        if md5 is not None and checksum.hexdigest() != md5.lower():
            raise InvalidParts(f"The file's MD5 is {checksum.hexdigest()}, not the one that was given.")
        file.seek(0)
        store.put_file(target, file, "application/octet-stream")
    return digest.digest()


def _upload(row: Any) -> Upload:
    return Upload(
        row.id, row.tenant_id, row.purpose, row.filename, row.bytes, row.state, row.file_id, row.file_expires_seconds,
        row.created_at, row.expires_at,
    )  # fmt: skip
