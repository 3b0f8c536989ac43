"""What goes by age alone: attempts that failed. Other tables are pruned by the package that writes them (README)."""

from sqlalchemy import Connection

from services.core.db.statements import statement

_FAILURES = statement("pruning.failures")("SELECT presswork_forget_failures(:days, :limit)")


def forget_failures(connection: Connection, days: int, limit: int = 10_000) -> int:
    """Deletes attempts that failed more than `days` ago, of jobs that have ended, up to `limit` a call; returns how
    many. The counts by cause stay."""
    return int(connection.execute(_FAILURES, {"days": days, "limit": limit}).scalar_one())
