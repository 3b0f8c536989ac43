"""COPY from the client, the quickest way to write many rows."""

from collections.abc import Iterable

import psycopg
from sqlalchemy import Connection, exc


def rows(connection: Connection, statement: str, pieces: Iterable[bytes]) -> None:
    """Runs a COPY from STDIN with these lines in its text format.

    Postgres refuses COPY into a table with row-level security; into a partition the application may insert, and not
    read it. Raises DBAPIError, as a statement does.
    """
    driver = connection.connection.driver_connection
    assert driver is not None
    try:
        with driver.cursor().copy(statement) as copy:
            for piece in pieces:
                copy.write(piece)
    except psycopg.Error as error:
        raise exc.DBAPIError.instance(
            statement, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=driver.closed
        ) from error
