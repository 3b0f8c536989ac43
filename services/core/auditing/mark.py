"""Whether database and store belong together: the same mark stands in both, and changes with each audit.

It holds the database server's identity, its timeline and the database's number, so that a dump that was loaded
elsewhere and a recovery to a point in time are seen, and a counter, so that a restored copy of the disk or of the
bucket is. While the marks differ no orphan is deleted: what looks like one may be what the restored database has
forgotten.
"""

import io
import json

from sqlalchemy import Connection

from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.model.errors import ObjectMissing
from services.core.storage.contract import ImageStore
from services.core.storage.installation import MARKER

NAME = "presswork-audit.json"
_READ = statement("mark.read")("""
SELECT epoch, is_pending, (SELECT id::text FROM installation) AS installation,
  (SELECT system_identifier::text FROM pg_control_system()) || '/' ||
  (SELECT timeline_id::text FROM pg_control_checkpoint()) || '/' ||
  (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS server
FROM storage_mark
""")
_RAISE = statement("mark.raise")("UPDATE storage_mark SET epoch = greatest(epoch, :theirs) + 1, is_pending = true")
_WRITTEN = statement("mark.written")("UPDATE storage_mark SET is_pending = false")


def refusal(database: Database, store: ImageStore) -> str | None:
    """Why no object may be deleted; None: the store is this installation's, and of the same time as the database."""
    with database.begin_system() as connection:
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


def renew(database: Database, store: ImageStore) -> None:
    """Gives both a new mark: after an audit that found them alike, or when somebody accepts a restore."""
    with database.begin_system() as connection:
        theirs = int(str(_read(store, NAME).get("epoch", 0)))
        connection.execute(_RAISE, {"theirs": theirs})
        epoch, _, _, server = _ours(connection)
    content = json.dumps({"epoch": epoch, "server": server}).encode()
    store.put_file(store.key(NAME), io.BytesIO(content), "application/json")
    with database.begin_system() as connection:
        connection.execute(_WRITTEN)


def _ours(connection: Connection) -> tuple[int, bool, str, str]:
    row = connection.execute(_READ).one()
    return row.epoch, row.is_pending, row.installation, row.server


def _read(store: ImageStore, name: str) -> dict[str, object]:
    try:
        found = json.loads(store.read(store.key(name)))
    except ObjectMissing:
        return {}
    except ValueError:
        return {"epoch": -1}
    return found if isinstance(found, dict) else {"epoch": -1}
