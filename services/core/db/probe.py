"""A look at the database that writes. Where the database takes no writes, a transaction does not even begin."""

from sqlalchemy import Connection

from services.core.db.statements import statement

# A commit that is flushed to disk like any other, and touches no table.
_WRITE = statement("probe.write")("SELECT pg_logical_emit_message(true, 'presswork', 'probe')")


def write(connection: Connection) -> None:
    """Writes into the log of the database and nowhere else; the caller commits."""
    connection.execute(_WRITE)
