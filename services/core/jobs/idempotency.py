"""Idempotency keys: each belongs to one job, export, file, run or act on many jobs, and is recorded in the transaction
that makes it."""

import hashlib
import json

from sqlalchemy import Connection, text

from services.core.db.statements import statement
from services.core.model.errors import DatabaseUnavailable, IdempotencyBusy, IdempotencyConflict, IdempotencyGone

_REMEMBER = statement("idempotency.remember")("""
INSERT INTO idempotency (tenant_id, key, request_sha256, job_id, kind)
VALUES (:tenant_id, :key, :sha256, :thing, :kind) ON CONFLICT DO NOTHING
""")
_REMEMBERED = statement("idempotency.remembered")("""
SELECT request_sha256, job_id, kind, CASE kind
  WHEN 'file' THEN EXISTS (SELECT FROM files WHERE files.id = idempotency.job_id AND deleted_at IS NULL
                           AND (expires_at IS NULL OR expires_at > now()))
  WHEN 'export' THEN EXISTS (SELECT FROM exports WHERE exports.id = idempotency.job_id
                             AND (expires_at IS NULL OR expires_at > now()))
  WHEN 'bulk' THEN EXISTS (SELECT FROM bulk_acts WHERE bulk_acts.id = idempotency.job_id)
  WHEN 'schedule_run' THEN true
  WHEN 'run' THEN EXISTS (SELECT FROM catalogue_runs WHERE catalogue_runs.id = idempotency.job_id)
  ELSE EXISTS (SELECT FROM jobs WHERE jobs.id = idempotency.job_id AND deleted_at IS NULL) END AS is_there
FROM idempotency WHERE tenant_id = :tenant_id AND key = :key
""")
_FIND = statement("idempotency.find")("""
SELECT job_id FROM idempotency WHERE tenant_id = :tenant_id AND key = :key AND kind = :kind
""")
_FORGET = statement("idempotency.forget")("""
DELETE FROM idempotency WHERE (tenant_id, key) IN (
  SELECT tenant_id, key FROM idempotency WHERE created_at < now() - interval '7 days' LIMIT 10000)
""")


def digest(*asked: object) -> bytes:
    """sha256 of a request as plain values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


def remember(
    connection: Connection, tenant_id: int, key: str, *, sha256: bytes, thing: int, kind: str = "job"
) -> int | None:
    """Records the key for the id `thing`. Returns None, or the id for which the key was recorded before. `sha256` is
    the digest of the request.

    Raises:
        IdempotencyConflict: the key was used for another request.
        IdempotencyGone: what the key made was deleted or has expired.
        IdempotencyBusy: a transaction that is under way is recording it.
    """
    values = {"tenant_id": tenant_id, "key": key, "sha256": sha256, "thing": thing, "kind": kind}
    connection.execute(text("SET LOCAL lock_timeout = '2s'"))
    try:
        taken = connection.execute(_REMEMBER, values).rowcount
    except Exception as error:
        if getattr(getattr(error, "orig", None), "sqlstate", None) == "55P03":
            raise IdempotencyBusy from None
        raise
    connection.execute(text("SET LOCAL lock_timeout = '10s'"))
    if taken:
        return None
    row = connection.execute(_REMEMBERED, {"tenant_id": tenant_id, "key": key}).one_or_none()
    if row is None:
        raise DatabaseUnavailable("The Idempotency-Key expired at this moment; try again.")
    if bytes(row.request_sha256) != sha256 or row.kind != kind:
        raise IdempotencyConflict
    if not row.is_there:
        raise IdempotencyGone
    return int(row.job_id)


def find(connection: Connection, tenant_id: int, key: str, kind: str) -> int | None:
    """The id for which the key was recorded, for a thing of that kind."""
    row = connection.execute(_FIND, {"tenant_id": tenant_id, "key": key, "kind": kind}).first()
    return None if row is None else int(row.job_id)


def forget(connection: Connection) -> None:
    """Deletes keys that are older than a week, up to 10,000 per call."""
    connection.execute(_FORGET)
