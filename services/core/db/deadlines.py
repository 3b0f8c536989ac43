"""Connections to Postgres that give up on a server that hangs.

The server's own timeouts need a server that works, and TCP's see only data that nobody acknowledges. Here the client
waits for each answer for a given time, and then closes the connection.
"""

from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, event

from services.core.db.statements import statement

ANSWER_SECONDS = 45.0  # more than the server's own statement timeout
LONG_SECONDS = 3600.0
_LIFT = statement("deadlines.lift")("""
SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '60s', true)
""")


class PatientConnection(psycopg.Connection[Any]):
    """`answer_seconds`: how long it waits for one answer."""

    answer_seconds = ANSWER_SECONDS

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Raises OperationalError, and closes the connection, if the server does not answer in time."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.answer_seconds)
        except psycopg.errors._WaitTimeout:  # noqa: SLF001  what psycopg's own wait raises
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer in {self.answer_seconds:g} s") from None


def limit(engine: Engine, seconds: float) -> None:
    """Makes the engine's connections give up on an answer after `seconds`."""

    def connect(_dialect: Any, _record: Any, arguments: Any, named: Any) -> PatientConnection:
        made = PatientConnection.connect(*arguments, **named)
        made.answer_seconds = seconds
        return made

    def forget(made: Any, _record: Any) -> None:
        if made is not None:
            made.answer_seconds = seconds

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkin", forget)


def lift(connection: Connection) -> None:
    """Lets the statements of this transaction take an hour each, here and at the server, with a minute between two."""
    connection.execute(_LIFT)
    driver: Any = connection.connection.driver_connection
    driver.answer_seconds = LONG_SECONDS
