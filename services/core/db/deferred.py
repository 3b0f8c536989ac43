"""What a transaction does last, before its commit: checks that take a lock, so that nobody holds it while it works."""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection

_NAME = "deferred"
T = TypeVar("T", bound=Callable[[Connection], None])


def clear(connection: Connection) -> None:
    """For a transaction that begins: a session of the pool may have kept what another one did not come to."""
    connection.info[_NAME] = {}


def once(connection: Connection, key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """The check of that key, made at the first call of a transaction. It is called with the connection before the
    commit, and what it raises takes the transaction back."""
    found: T = connection.info.setdefault(_NAME, {}).setdefault(key, None) or make()
    connection.info[_NAME][key] = found
    return found


def run(connection: Connection) -> None:
    """Runs the checks of this transaction, in the order of their keys."""
    checks = connection.info.pop(_NAME, {})
    for key in sorted(checks):
        checks[key](connection)
