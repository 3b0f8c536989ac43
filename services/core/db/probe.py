"""A look at the database that writes: a session can be healthy while its server, or the session, is read-only."""

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model.errors import DatabaseReadOnly

_READ_ONLY = statement("probe.read_only")(
    "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean"
)
# A commit that is flushed to disk like any other, and touches no table.
_WRITE = statement("probe.write")("SELECT pg_logical_emit_message(true, 'presswork', 'probe')")


def write(connection: Connection) -> None:
    """Writes into the log of the database and nowhere else; the caller commits. Raises DatabaseReadOnly."""
    if connection.execute(_READ_ONLY).scalar_one():
        raise DatabaseReadOnly
    connection.execute(_WRITE)
