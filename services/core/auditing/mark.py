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
from typing import NamedTuple

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
_TRIES = 5
_SERVER = """(SELECT system_identifier::text FROM pg_control_system()) || '/' ||
  (SELECT timeline_id::text FROM pg_control_checkpoint()) || '/' ||
  (SELECT oid::text FROM pg_database WHERE datname = current_database())"""
_READ = statement("mark.read")(f"""
SELECT epoch, {_SERVER} AS server, is_pending, (SELECT id::text FROM installation) AS installation FROM storage_mark
""")  # noqa: S608  our own text
_PREFIXES = statement("mark.prefixes")("SELECT id::text AS installation, prefixes FROM installation")
_RAISE = statement("mark.raise")("""
UPDATE storage_mark SET epoch = greatest(epoch, :theirs) + 1, is_pending = true
WHERE epoch = :epoch OR :accepts_restore RETURNING epoch
""")
_STORED = statement("mark.stored")(f"""
UPDATE storage_mark SET is_pending = :is_pending, refusal = NULL WHERE epoch = :epoch AND {_SERVER} = :server
""")  # noqa: S608  our own text
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
    found = renew(lease.database, store)
    if found is not None:
        log.warning("no object is deleted: a restore is to be accepted", extra={"reason": found})
    with lease.begin() as connection:
        connection.execute(_LOOKED, {"refusal": found})


def last_refusal(connection: Connection) -> str | None:
    """Why no object would be deleted, when that was last looked at."""
    found = connection.execute(_REFUSAL).scalar_one()
    return None if found is None else str(found)


def refusal(database: Database, store: ImageStore) -> str | None:
    """Why no object may be deleted; None: the store is this installation's, and of the same time as the database."""
    return _compare(database, store)[0]


def own_prefixes(database: Database, store: ImageStore) -> set[str]:
    """The prefix of this installation, and those that it had before whose marker names it still: another may have been
    given up, and be another's by now."""
    with database.read_system() as connection:
        row = connection.execute(_PREFIXES).one()
    before = {prefix for prefix in row.prefixes
              if _content(store, prefix + MARKER).get("installation") == row.installation}  # fmt: skip
    return {store.key(""), *before}


def renew(database: Database, store: ImageStore, *, accepts_restore: bool = False) -> str | None:
    """Gives both a new mark, if they belong together or if somebody accepts a restore, which is an event. Returns why
    no object may be deleted afterwards, as `refusal` does.

    A mark that was never stored is stored first: the number after it would look like a restore. The new mark then stays
    pending until the next renewal, since another process may be about to store the one before it.
    """
    found, ours, theirs = _compare(database, store)
    if found is not None and not accepts_restore:
        return found
    is_behind = found is None and theirs < ours.epoch
    if is_behind and not _store(database, store, ours, is_pending=True):
        return refusal(database, store)
    with database.begin_system() as connection:
        if accepts_restore:
            events.append(connection, "storage.restore_accepted", "storage/mark", tenant_id=None)
        values = {"theirs": theirs, "epoch": ours.epoch, "accepts_restore": accepts_restore}
        epoch = connection.execute(_RAISE, values).scalar_one_or_none()
    if epoch is not None:  # else another process has renewed it meanwhile, or the database was restored
        _store(database, store, ours._replace(epoch=epoch), is_pending=is_behind)
    return refusal(database, store)


class _Ours(NamedTuple):
    epoch: int
    server: str
    is_pending: bool
    installation: str


def _store(database: Database, store: ImageStore, mark: _Ours, *, is_pending: bool) -> bool:
    """Stores the database's mark and notes that. If another process has renewed it meanwhile, this one may have stored
    an older mark over a newer one: it stores the newer one, too. Returns whether both have the same mark at the end;
    not so if the database was restored meanwhile."""
    for _ in range(_TRIES):
        crash_point("mark.raised")
        content = json.dumps({"epoch": mark.epoch, "server": mark.server}).encode()
        store.put_file(store.key(NAME), io.BytesIO(content), "application/json")
        crash_point("mark.stored")
        values = {"epoch": mark.epoch, "server": mark.server, "is_pending": is_pending}
        with database.begin_system() as connection:
            if connection.execute(_STORED, values).rowcount:
                return True
        now = _ours(database)
        if now.server != mark.server or now.epoch <= mark.epoch:
            return False
        mark = now
    return False


def _ours(database: Database) -> _Ours:
    with database.read_system() as connection:
        return _Ours(*connection.execute(_READ).one())


def _compare(database: Database, store: ImageStore) -> tuple[str | None, _Ours, int]:
    """Why they do not belong together, or None; the database's mark; the number of the store's, 0 if it has none."""
    for _ in range(_TRIES):
        ours = _ours(database)
        theirs = _read(store, NAME)
        found = _difference(ours, theirs, _read(store, MARKER))
        if found is None or ours == _ours(database):  # else another process was about to renew it
            break
    epoch = theirs.get("epoch", 0)
    return found, ours, epoch if isinstance(epoch, int) else -1


def _difference(ours: _Ours, theirs: dict[str, object], marker: dict[str, object]) -> str | None:
    if marker.get("installation") != ours.installation:
        return "the marker object of the prefix names another installation, or is missing"
    is_alike = theirs.get("epoch", 0) in (ours.epoch, ours.epoch - ours.is_pending)
    if not theirs:
        return None if is_alike else "the store has no mark of an earlier audit: was it restored?"
    if theirs.get("server") != ours.server:
        return "the database is another one than at the last audit, or was recovered: was it restored?"
    return None if is_alike else "the marks of database and store differ: was one of them restored?"


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
