"""Drains: devices whose workers finish what they hold and take nothing new, until they are resumed.

A drain holds for a device of a host, which quarantine too goes by, and so outlives the processes there: a worker that
is started again stays drained. Functions take an open system transaction.
"""

from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.model.errors import NotFound

# A condition of a statement about workers.
NOT_DRAINED = "NOT EXISTS (SELECT FROM drains d WHERE d.host = workers.host AND d.device = workers.device)"

_FIND = statement("drains.find")("""
SELECT host, device FROM workers
WHERE id = :id AND state <> 'starting'
  AND seen_at BETWEEN now() - interval '5 minutes' AND now() + interval '5 minutes'
""")
_LOGGED = """SELECT CAST(:tenant_id AS integer) AS tenant_id, 'device/' || host || ' ' || device AS subject FROM"""
_DRAIN = statement("drains.drain")(f"""
WITH made AS (
  INSERT INTO drains (host, device) VALUES (:host, :device) ON CONFLICT DO NOTHING RETURNING host, device
), logged AS ({_LOGGED} made)
{log.of_each("logged", "'worker.drained'", subject="subject")}
""")  # noqa: S608  our own text
_RESUME = statement("drains.resume")(f"""
WITH gone AS (
  DELETE FROM drains WHERE host = :host AND device = :device RETURNING host, device
), logged AS ({_LOGGED} gone)
{log.of_each("logged", "'worker.resumed'", subject="subject")}
""")  # noqa: S608  our own text


def drain(connection: Connection, worker_id: str, tenant_id: int) -> None:
    """From this commit on, workers of that worker's device claim nothing. `tenant_id` is whose key does it. A second
    call is not an error. Raises NotFound."""
    connection.execute(_DRAIN, _place(connection, worker_id) | {"tenant_id": tenant_id})


def resume(connection: Connection, worker_id: str, tenant_id: int) -> None:
    """Ends the drain. A second call is not an error. Raises NotFound."""
    connection.execute(_RESUME, _place(connection, worker_id) | {"tenant_id": tenant_id})


def _place(connection: Connection, worker_id: str) -> dict[str, Any]:
    row = connection.execute(_FIND, {"id": worker_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such worker.")
    return {"host": row.host, "device": row.device}
