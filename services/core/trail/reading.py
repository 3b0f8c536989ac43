"""Reads the audit trail by whole sealed ranges, and checks each range against its seal on the way.

A range that no longer is what was sealed is a fault, and says so in the trail itself: whoever reads it cannot miss it.
What is not sealed yet, the last few seconds, is not in it.

Memory and time of a page go by its length, however long the trail is: where it begins and ends is looked up once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, TextClause

from services.core.db.statements import statement
from services.core.events.queries import Event
from services.core.model import audit_chain
from services.core.tenants import tenants as tenant_records
from services.core.trail import records

_SEALS_AT_ONCE = 100
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


def _ends(name: str, source: str) -> TextClause:
    """Where chains end, also those of tenants that are being deleted."""
    return statement(name)(f"""
SELECT whose.tenant_id, s.n, s.hash FROM ({source}) whose CROSS JOIN LATERAL (
  SELECT first + cardinality(seqs) - 1 AS n, hash FROM audit_seals
  WHERE tenant_id = whose.tenant_id ORDER BY id DESC LIMIT 1
) s
""")  # noqa: S608  our own text


def _page(name: str, source: str) -> TextClause:
    return statement(name)(f"""
SELECT {_COLUMNS} {source} AND s.id > :after AND s.id <= :last AND s.pruned_at IS NULL
ORDER BY s.id LIMIT :limit
""")


_EDGES_MINE = _edges("reading.edges_mine", _MINE)
_EDGES_ALL = _edges("reading.edges_all", _ALL)
_PAGE_MINE = _page("reading.page_mine", _MINE)
_PAGE_ALL = _page("reading.page_all", _ALL)
_ENDS_MINE = _ends("reading.ends_mine", "SELECT CAST(:tenant_id AS integer) AS tenant_id")
_ENDS_ALL = _ends("reading.ends_all", "SELECT id AS tenant_id FROM tenants")
_END_OF_SYSTEM = statement("reading.end_of_system")("""
SELECT first + cardinality(seqs) - 1 AS n, hash FROM audit_seals WHERE tenant_id IS NULL ORDER BY id DESC LIMIT 1
""")
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
    def whose(self) -> dict[str, int]:
        """The parameter of a statement about one tenant."""
        return {} if self.tenant_id is None else {"tenant_id": self.tenant_id}

    @property
    def is_filtered(self) -> bool:
        """Whether records between others are left out."""
        return (self.actor, self.event) != (None, None)

    def takes(self, event: Event) -> bool:
        return self.actor in (None, event.actor) and self.event in (None, event.kind)


class Place(NamedTuple):
    """Where a page begins, behind a seal, and the last seal of what was asked for."""

    after: int
    last: int


@dataclass(frozen=True, slots=True)
class Page:
    """Records and faults, in the order in which they were sealed. `more` is where the next page begins; None: this is
    the last one, and then `chains` says where each chain that was asked for ends now, by its tenant: whatever was left
    out of the records. A tenant of its own has 0 and the hash before the first record if it has no chain."""

    lines: list[dict[str, Any]]
    more: Place | None
    chains: dict[str, dict[str, Any]] | None = None


def page(connection: Connection, asked: Asked, place: Place | None = None, *, limit: int) -> Page:
    """The ranges from `place` on, or the first ones, as many as hold about `limit` events: at most one range more."""
    place = place or _begin(connection, asked)
    taken, more = ([], None) if place is None else _take(connection, asked, place, limit)
    events = _events(connection, taken)
    lacking = [seal.id for seal in taken if not events.keys() >= set(seal.seqs)]
    # Those that were pruned since the statement before are no fault.
    pruned = set(connection.execute(_PRUNED, {"ids": lacking}).scalars()) if lacking else set()
    lines = [line for seal in taken if seal.id not in pruned for line in _lines(seal, events, asked)]
    return Page(lines, more, _chains(connection, asked) if more is None else None)


def _begin(connection: Connection, asked: Asked) -> Place | None:
    """Where the first page begins; None: there is nothing. It reads past the seals before `since` or after `until`."""
    edges_of = _EDGES_ALL if asked.tenant_id is None else _EDGES_MINE
    edges = connection.execute(edges_of, asked.whose | {"since": asked.since, "until": asked.until}).one()
    return None if edges.first is None or edges.last is None else Place(edges.first - 1, edges.last)


def _take(connection: Connection, asked: Asked, place: Place, limit: int) -> tuple[list[Any], Place | None]:
    """Seals that hold at least `limit` events, if there are as many, and where the rest begins."""
    page_of = _PAGE_ALL if asked.tenant_id is None else _PAGE_MINE
    held, taken = 0, list[Any]()
    while True:
        values = {"after": taken[-1].id if taken else place.after, "last": place.last, "limit": _SEALS_AT_ONCE}
        some = connection.execute(page_of, asked.whose | values).all()
        for number, seal in enumerate(some, 1):
            taken.append(seal)
            held += len(seal.seqs)
            if held >= limit and (number < len(some) or len(some) == _SEALS_AT_ONCE):
                return taken, Place(seal.id, place.last)
        if len(some) < _SEALS_AT_ONCE:
            return taken, None


def _chains(connection: Connection, asked: Asked) -> dict[str, dict[str, Any]]:
    if asked.tenant_id is not None:
        found = connection.execute(_ENDS_MINE, asked.whose).one_or_none()
        place, hashed = (0, audit_chain.GENESIS) if found is None else (found.n, found.hash)
        return {tenant_records.public_id(asked.tenant_id): {"n": place, "hash": hashed.hex()}}
    chains = {
        tenant_records.public_id(row.tenant_id): {"n": row.n, "hash": row.hash.hex()}
        for row in connection.execute(_ENDS_ALL)
    }
    system = connection.execute(_END_OF_SYSTEM).one_or_none()
    return chains if system is None else chains | {audit_chain.SYSTEM: {"n": system.n, "hash": system.hash.hex()}}


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
