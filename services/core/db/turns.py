"""Turns: what waits of every tenant, so that one who has much waiting keeps no other from its turn."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, TextClause

FIRST = 10  # of each tenant, for one look
_MOST = 200


class Waiting(NamedTuple):
    """Something that waits, and whose it is."""

    id: int
    tenant_id: int


def first_of_each(rows: str) -> str:
    """A query for the first ids of every tenant, then the second and so on; tenants of one turn in random order.

    `rows` is SQL that selects the ids of the tenant `t.id` in order, up to a limit. An index by tenant makes it cheap:
    so much is read as is returned. The parameters `busy` and `most` are needed: tenants that are left out, and how many
    rows there may be.
    """
    return f"""
SELECT mine.id, t.id AS tenant_id
FROM tenants t
CROSS JOIN LATERAL (SELECT id, row_number() OVER () AS turn FROM ({rows}) own) mine
WHERE t.id <> ALL(CAST(:busy AS integer[]))
ORDER BY mine.turn, random() LIMIT :most
"""  # noqa: S608  our own text


def waiting(
    connection: Connection, query: TextClause, excluding: Sequence[int], busy: Sequence[int], **values: Any
) -> list[Waiting]:
    """Runs a query made by `first_of_each` whose rows leave out `excluding`."""
    usual = {"excluding": list(excluding), "busy": list(busy), "first": FIRST, "most": _MOST}
    return [Waiting(row.id, row.tenant_id) for row in connection.execute(query, usual | values)]
