"""Numbering: events get their `seq` once they are committed, and all readers go by it.

Identities are given at the insert: a reader that goes by them passes over a transaction that commits late, or has to
wait for it. The function in the database numbers what is committed, one caller at a time; a second one does nothing.
"""

from sqlalchemy import Connection

from services.core.db.statements import statement

_NUMBER = statement("numbering.number")("SELECT presswork_number_events(:most)")


def number(connection: Connection, most: int = 5_000) -> int:
    """Numbers up to `most` events; returns how many. To be called again while it returns so many."""
    return int(connection.execute(_NUMBER, {"most": most}).scalar_one())
