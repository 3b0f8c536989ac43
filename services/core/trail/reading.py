"""Reads the audit trail by whole sealed ranges, and checks each range against its seal on the way.

A range that no longer is what was sealed is a fault, and says so in the trail itself: whoever reads it cannot miss it.
What is not sealed yet, the last few seconds, is not in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, TextClause

from services.core.db.statements import statement
from services.core.events.queries import Event
from services.core.model import audit_chain
from services.core.tenants import tenants as tenant_records
from services.core.trail import records

_COLUMNS = "s.id, s.tenant_id, s.first, s.seqs, s.previous, s.hash, s.sealed_at"
_MINE = "FROM audit_seals s WHERE s.tenant_id = :tenant_id"
# Of a tenant that is being deleted some events may be gone already.
_ALL = "FROM audit_seals s LEFT JOIN tenants t ON t.id = s.tenant_id WHERE t.deleted_at IS NULL"


def _edges(name: str, source: str) -> TextClause:
    """The first range and the last one: everything between is read, so that no record between others is left out."""
    return statement(name)(f"""
SELECT CASE WHEN CAST(:since AS timestamptz) IS NULL THEN 0
            ELSE (SELECT s.id {source} AND s.to_at >= :since ORDER BY s.id LIMIT 1) END AS first,
       CASE WHEN CAST(:until AS timestamptz) IS NULL THEN {2**63 - 1}
            ELSE (SELECT s.id {source} AND s.from_at < :until ORDER BY s.id DESC LIMIT 1) END AS last
""")


def _page(name: str, source: str) -> TextClause:
    return statement(name)(f"""
SELECT {_COLUMNS} {source} AND s.id > :after AND s.id >= :first AND s.id <= :last AND s.pruned_at IS NULL
ORDER BY s.id LIMIT :limit
""")


_EDGES_MINE = _edges("reading.edges_mine", _MINE)
_EDGES_ALL = _edges("reading.edges_all", _ALL)
_PAGE_MINE = _page("reading.page_mine", _MINE)
_PAGE_ALL = _page("reading.page_all", _ALL)
_PRUNED = statement("reading.pruned")("""
SELECT id FROM audit_seals WHERE id = ANY(CAST(:ids AS bigint[])) AND pruned_at IS NOT NULL
""")
_EVENTS = statement("reading.events")("""
SELECT seq, tenant_id, at, actor, kind, subject, data FROM events WHERE seq = ANY(CAST(:seqs AS bigint[]))
""")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is read: of one tenant, or of all tenants and the system; from the range of `since` to that of `until`; of
    one actor, of one kind of event."""

    tenant_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    actor: str | None = None
    event: str | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether records between others are left out."""
        return (self.actor, self.event) != (None, None)

    def takes(self, event: Event) -> bool:
        return self.actor in (None, event.actor) and self.event in (None, event.kind)


@dataclass(frozen=True, slots=True)
class Page:
    """Records and faults, in the order in which they were sealed. `after` is where the next page begins; None: this is
    the last one."""

    lines: list[dict[str, Any]]
    after: int | None


def page(connection: Connection, asked: Asked, after: int = 0, *, limit: int) -> Page:
    """The ranges behind the seal `after`, as many as hold about `limit` events: at most one range more."""
    edges_of, page_of = (_EDGES_ALL, _PAGE_ALL) if asked.tenant_id is None else (_EDGES_MINE, _PAGE_MINE)
    values: dict[str, Any] = {} if asked.tenant_id is None else {"tenant_id": asked.tenant_id}
    since = None if after else asked.since  # a page behind another begins where that one ended
    edges = connection.execute(edges_of, values | {"since": since, "until": asked.until}).one()
    if edges.first is None or edges.last is None:
        return Page([], None)
    values |= {"after": after, "first": edges.first, "last": edges.last, "limit": limit + 1}
    seals = connection.execute(page_of, values).all()
    held, taken = 0, []
    for seal in seals:
        if held >= limit:
            break
        taken.append(seal)
        held += len(seal.seqs)
    more = taken[-1].id if len(taken) < len(seals) else None
    events = _events(connection, taken)
    lacking = [seal.id for seal in taken if not events.keys() >= set(seal.seqs)]
    # Those that were pruned since the statement before are no fault.
    pruned = set(connection.execute(_PRUNED, {"ids": lacking}).scalars()) if lacking else set()
    return Page([line for seal in taken if seal.id not in pruned for line in _lines(seal, events, asked)], more)


def _events(connection: Connection, seals: Sequence[Any]) -> dict[int, Event]:
    """What is there of the ranges' events, by their numbers."""
    seqs = [seq for seal in seals for seq in seal.seqs]
    rows = connection.execute(_EVENTS, {"seqs": seqs}) if seqs else ()
    return {row.seq: Event(row.seq, row.tenant_id, row.at, row.actor, row.kind, row.subject, row.data) for row in rows}


def _lines(seal: Any, events: dict[int, Event], asked: Asked) -> Iterator[dict[str, Any]]:
    hashed = seal.previous
    missing = [seq for seq in seal.seqs if seq not in events]
    for place, seq in enumerate(seal.seqs, seal.first):
        if seq not in events:
            continue
        found = records.record(events[seq], place)
        previous, hashed = hashed, audit_chain.link(hashed, found)
        if asked.takes(events[seq]):
            yield {**found, "previous": previous.hex(), "hash": hashed.hex()}
    if hashed != seal.hash:
        yield _fault(seal, missing)


def _fault(seal: Any, missing: Sequence[int]) -> dict[str, Any]:
    tenant = None if seal.tenant_id is None else tenant_records.public_id(seal.tenant_id)
    return {
        "fault": "missing" if missing else "changed",
        "tenant": tenant,
        "first": seal.first,
        "last": seal.first + len(seal.seqs) - 1,
        "missing": list(missing),  # numbers of events
        "sealed_at": seal.sealed_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
