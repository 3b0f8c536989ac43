"""How long events are kept. A function in the database deletes old ones; it always keeps the newest numbered one."""

from sqlalchemy import Connection

from services.core.db.statements import statement

_FORGET = statement("retention.forget")("SELECT presswork_forget_events(:days, :limit)")


def forget(connection: Connection, days: int, limit: int = 20_000) -> int:
    """Deletes events that are more than `days` old, up to `limit` per call; returns how many."""
    return int(connection.execute(_FORGET, {"days": days, "limit": limit}).scalar_one())
