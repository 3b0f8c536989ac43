"""Numbering: events get their `seq` after they are committed, and all readers go by it.

An event's `id` is assigned when it is inserted. A reader that goes by ids would either miss a transaction that commits
late or have to wait for it. So a function in the database numbers the rows that are committed, one caller at a time.

The next number is `max(seq) + 1`. Whatever deletes old events must keep the newest numbered one, as `retention` does:
without it numbers would start at 1 again, and readers that remember a higher number would miss every new event.
"""

from sqlalchemy import Connection

from services.core.db.statements import statement

_NUMBER = statement("numbering.number")("SELECT presswork_number_events(:limit)")


def number(connection: Connection, limit: int = 5_000) -> int:
    """Numbers up to `limit` events; returns how many. Call it again while it returns `limit`. While another caller
    numbers, it does nothing."""
    return int(connection.execute(_NUMBER, {"limit": limit}).scalar_one())
