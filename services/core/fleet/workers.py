"""Workers: registered when their pipeline has passed its canary, and seen with every heartbeat.

A worker's id belongs to one process and is never reused. Functions take an open transaction.
"""

from sqlalchemy import Connection

from services.core.db.statements import statement

_REGISTER = statement("workers.register")("""
INSERT INTO workers (id, host, pid, device, model, model_revision, state)
VALUES (:id, :host, :pid, :device, :model, :model_revision, :state)
ON CONFLICT (id) DO UPDATE SET state = excluded.state, seen_at = now()
""")
_BEAT = statement("workers.beat")("UPDATE workers SET seen_at = now(), state = :state WHERE id = :id")

_SEEN = statement("workers.seen")("""
SELECT EXISTS (SELECT FROM workers
               WHERE host = :host AND state <> 'crashed'
                 AND seen_at BETWEEN now() - interval '10 seconds' AND now() + interval '10 seconds')
""")
_FORGET = statement("workers.forget")("DELETE FROM workers WHERE seen_at < now() - interval '1 day'")


def seen(connection: Connection, host: str) -> bool:
    """Whether a worker of that host was seen in the last ten seconds."""
    return bool(connection.execute(_SEEN, {"host": host}).scalar_one())


def register(
    connection: Connection, worker_id: str, *, host: str, pid: int, device: str, model: str, revision: str, state: str
) -> None:
    """`state` is ready or sick; `device` is the name that users see."""
    values = {"id": worker_id, "host": host, "pid": pid, "device": device, "model": model}
    connection.execute(_REGISTER, values | {"model_revision": revision, "state": state})


def beat(connection: Connection, worker_id: str, state: str) -> bool:
    """Records a heartbeat. `state` is ready, busy, sick, stopped or crashed. False: the worker is not registered."""
    return connection.execute(_BEAT, {"id": worker_id, "state": state}).rowcount == 1


def forget(connection: Connection) -> None:
    """Deletes workers that were not seen for a day."""
    connection.execute(_FORGET)
