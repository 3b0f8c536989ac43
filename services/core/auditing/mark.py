"""Whether database and store belong together: the same mark stands in both, and changes all the time.

It holds the database server's identity, its timeline and the database's number, so that a dump that was loaded
elsewhere and a recovery to a point in time are seen, and a counter, so that a restored copy of the disk or of the
bucket is. The schedulers renew it every ten minutes, from the first start on, so a copy of the disk that is older is
seen. While the marks differ they leave it, and no orphan is deleted: what looks like one may be what the restored
database has forgotten.
"""

import io
import json
import logging
from collections.abc import Sequence

from sqlalchemy import Connection

from services.core.crash_points import crash_point
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log as events
from services.core.model.errors import ObjectMissing
from services.core.storage.contract import ImageStore
from services.core.storage.installation import MARKER

log = logging.getLogger(__name__)
NAME = "presswork-audit.json"
RENEWED_SECONDS = 600.0
_READ = statement("mark.read")("""
SELECT epoch, is_pending, (SELECT id::text FROM installation) AS installation,
  (SELECT system_identifier::text FROM pg_control_system()) || '/' ||
  (SELECT timeline_id::text FROM pg_control_checkpoint()) || '/' ||
  (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS server
FROM storage_mark
""")
_PREFIXES = statement("mark.prefixes")("SELECT id::text AS installation, prefixes FROM installation")
_RAISE = statement("mark.raise")("UPDATE storage_mark SET epoch = greatest(epoch, :theirs) + 1, is_pending = true")
_WRITTEN = statement("mark.written")("""
UPDATE storage_mark SET is_pending = false, refusal = NULL WHERE epoch = :epoch
""")
_PENDING = statement("mark.pending")("""
SELECT 1 AS id, (SELECT min(tenants.id) FROM tenants) AS tenant_id FROM storage_mark
WHERE (looked_at IS NULL OR looked_at NOT BETWEEN now() - make_interval(secs => :seconds) AND now())
  AND 1 <> ALL(CAST(:excluding AS bigint[]))
""")
_LOOKED = statement("mark.looked")("UPDATE storage_mark SET looked_at = now(), refusal = :refusal")
_REFUSAL = statement("mark.last_refusal")("SELECT refusal FROM storage_mark")


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:  # noqa: ARG001
    """The mark, if it was not looked at for ten minutes."""
    rows = connection.execute(_PENDING, {"excluding": list(excluding), "seconds": RENEWED_SECONDS})
    return [Waiting(row.id, row.tenant_id) for row in rows]


def keep(store: ImageStore, lease: Lease) -> None:
    """Renews the mark, unless database and store do not belong together: then that is noted."""
    found = refusal(lease.database, store)
    if found is None:
        renew(lease.database, store)
    else:
        log.warning("no object is deleted: a restore is to be accepted", extra={"reason": found})
    with lease.begin() as connection:
        connection.execute(_LOOKED, {"refusal": found})


def last_refusal(connection: Connection) -> str | None:
    """Why no object would be deleted, when that was last looked at."""
    found = connection.execute(_REFUSAL).scalar_one()
    return None if found is None else str(found)


def refusal(database: Database, store: ImageStore) -> str | None:
    """Why no object may be deleted; None: the store is this installation's, and of the same time as the database."""
    with database.read_system() as connection:
        epoch, is_pending, installation, server = _ours(connection)
    if _read(store, MARKER).get("installation") != installation:
        return "the marker object of the prefix names another installation, or is missing"
    theirs = _read(store, NAME)
    if not theirs:
        return None if epoch == 0 else "the store has no mark of an earlier audit: was it restored?"
    if theirs.get("server") != server:
        return "the database is another one than at the last audit, or was recovered: was it restored?"
    if theirs.get("epoch") == epoch or (is_pending and theirs.get("epoch") == epoch - 1):
        return None
    return "the marks of database and store differ: was one of them restored?"


def own_prefixes(database: Database, store: ImageStore) -> set[str]:
    """The prefix of this installation, and those that it had before whose marker names it still: another may have been
    given up, and be another's by now."""
    with database.read_system() as connection:
        row = connection.execute(_PREFIXES).one()
    before = {prefix for prefix in row.prefixes
              if _content(store, prefix + MARKER).get("installation") == row.installation}  # fmt: skip
    return {store.key(""), *before}


def renew(database: Database, store: ImageStore, *, accepts_restore: bool = False) -> None:
    """Gives both a new mark: after an audit that found them alike, or when somebody accepts a restore, an event. If
    another process has renewed it meanwhile, this one may have stored an older mark over a newer one: it begins again.
    """
    while not _renewed(database, store, accepts_restore=accepts_restore):
        accepts_restore = False


def _renewed(database: Database, store: ImageStore, *, accepts_restore: bool) -> bool:
    """Gives both a new mark. Returns whether no other process did that meanwhile."""
    with database.begin_system() as connection:
        if accepts_restore:
            events.append(connection, "storage.restore_accepted", "storage/mark", tenant_id=None)
        theirs = int(str(_read(store, NAME).get("epoch", 0)))
        connection.execute(_RAISE, {"theirs": theirs})
        epoch, _, _, server = _ours(connection)
    crash_point("mark.raised")
    content = json.dumps({"epoch": epoch, "server": server}).encode()
    store.put_file(store.key(NAME), io.BytesIO(content), "application/json")
    crash_point("mark.stored")
    with database.begin_system() as connection:
        return bool(connection.execute(_WRITTEN, {"epoch": epoch}).rowcount)


def _ours(connection: Connection) -> tuple[int, bool, str, str]:
    row = connection.execute(_READ).one()
    return row.epoch, row.is_pending, row.installation, row.server


def _read(store: ImageStore, name: str) -> dict[str, object]:
    return _content(store, store.key(name))


def _content(store: ImageStore, key: str) -> dict[str, object]:
    try:
        found = json.loads(store.read(key))
    except ObjectMissing:
        return {}
    except ValueError:
        return {"epoch": -1}
    return found if isinstance(found, dict) else {"epoch": -1}
