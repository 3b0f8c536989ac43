"""The audit trail: kept for longer, sealed in order, and whoever changes it in the database is found out."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.event import listen
from sqlalchemy.exc import DBAPIError

from services.core.db import tables
from services.core.db.database import Database
from services.core.events import log, numbering, retention
from services.core.model import audit_chain
from services.core.trail import reading, sealing
from tests.factories import TENANT

Owner = Callable[..., Any]


@pytest.fixture
def owner(stack: Any, database_url: str) -> Iterator[Owner]:
    """Runs a statement as the owner of the database, who may do what no program may."""
    name = database_url.rpartition("/")[2]
    url = f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection.execute


def act(database: Database, kind: str = "key.issued", subject: str = "key/a", **more: Any) -> None:
    with database.begin_system() as connection:
        log.append(connection, kind, subject, **({"tenant_id": TENANT} | more))


def seal(database: Database, most: int = sealing.MOST) -> int:
    with database.begin_system() as connection:
        while numbering.number(connection):
            pass
        return sealing.seal(connection, most)


def trail(database: Database, tenant: int | None = TENANT, **asked: Any) -> list[dict[str, Any]]:
    lines, place = [], None
    while True:
        with database.begin_system() as connection:
            page = reading.page(connection, reading.Asked(tenant, **asked), place, limit=2)
        lines += page.lines
        if page.more is None:
            return lines
        place = page.more


def test_each_act_is_sealed_once_in_a_chain_of_its_tenant(database: Database, owner: Owner) -> None:
    owner("INSERT INTO tenants (id, name) OVERRIDING SYSTEM VALUE VALUES (7, 'acme')")
    for number in range(5):
        act(database, subject=f"key/{number}", data={"name": "Ünïcode", "weight": 2.5})
        act(database, "job.created", "job/1")
        act(database, subject="key/theirs", tenant_id=7)
        act(database, "storage.audited", "audit/1", tenant_id=None)
        assert seal(database) == 4
        assert seal(database) == 0
    for tenant, count in ((TENANT, 5), (7, 5)):
        lines = trail(database, tenant)
        assert [line["n"] for line in lines] == list(range(1, count + 1))
        previous = audit_chain.GENESIS
        for line in json.loads(json.dumps(lines)):
            assert bytes.fromhex(line["previous"]) == previous
            previous = audit_chain.link(previous, line)
            assert bytes.fromhex(line["hash"]) == previous
    assert {line["event"] for line in trail(database)} == {"key.issued"}
    everything = trail(database, None)
    assert len(everything) == 15 and {line["tenant"] for line in everything} >= {None}


def test_what_is_committed_late_is_sealed_later_and_not_missed(database: Database) -> None:
    late = database.begin_system()
    connection = late.__enter__()
    log.append(connection, "key.issued", "key/late", tenant_id=TENANT)
    act(database, subject="key/early")
    assert seal(database) == 1
    late.__exit__(None, None, None)
    assert seal(database) == 1
    assert [(line["n"], line["subject"]) for line in trail(database)] == [(1, "early"), (2, "late")]


def test_a_transaction_seals_so_much_and_a_range_holds_so_many(database: Database, owner: Owner) -> None:
    owner(
        "INSERT INTO events (tenant_id, actor, kind, subject) "
        f"SELECT {TENANT}, 'cli/a', 'key.revoked', 'key/' || n FROM generate_series(1, 450) n"
    )
    assert [seal(database, 300), seal(database, 300), seal(database, 300)] == [300, 150, 0]
    sizes = [row[0] for row in owner("SELECT cardinality(seqs) FROM audit_seals ORDER BY id").fetchall()]
    assert sizes == [200, 100, 150]
    lines = trail(database)
    assert [line["n"] for line in lines] == list(range(1, 451)) and not any("fault" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "fault", "missing"),
    [
        ("UPDATE events SET actor = 'key/other' WHERE seq = 2", "changed", []),
        ("UPDATE events SET data = '{}' WHERE seq = 2", "changed", []),
        ("UPDATE events SET at = at - interval '1 microsecond' WHERE seq = 2", "changed", []),
        ("UPDATE events SET tenant_id = NULL WHERE seq = 2", "changed", []),
        ("DELETE FROM events WHERE seq = 2", "missing", [2]),
        ("UPDATE audit_seals SET hash = decode(repeat('00', 32), 'hex') WHERE id = 1", "changed", []),
    ],
)
def test_what_the_owner_changes_in_the_database_is_a_fault_of_its_range(
    database: Database, owner: Owner, change: str, fault: str, missing: list[int]
) -> None:
    for number in range(3):
        act(database, subject=f"key/{number}", data={"name": "a"})
    seal(database)
    act(database)
    seal(database)
    owner(change)
    faults = [line for line in trail(database) if "fault" in line]
    assert [(one["fault"], one["first"], one["last"], one["missing"]) for one in faults] == [(fault, 1, 3, missing)]


def test_the_trail_outlives_other_events_and_its_seals_outlive_it(database: Database, owner: Owner) -> None:
    for subject in ("job/1", "job/2"):
        act(database, "job.created", subject)
        act(database, subject=f"key/{subject[-1]}")
        seal(database)
    owner("UPDATE events SET at = now() - interval '100 days'")
    owner("UPDATE audit_seals SET from_at = now() - interval '100 days', to_at = now() - interval '100 days'")
    act(database, "job.created", "job/3")
    seal(database)

    def forget(days: int) -> tuple[int, int]:
        with database.begin_system() as connection:
            return retention.forget(connection, 30), sealing.forget(connection, days)

    assert forget(days=101) == (2, 0)
    assert [row[0] for row in owner("SELECT kind FROM events ORDER BY seq").fetchall()] == [
        "key.issued", "key.issued", "job.created",
    ]  # fmt: skip
    with pytest.raises(DBAPIError, match="at least 90 days"), database.begin_system() as connection:
        sealing.forget(connection, 89)
    assert forget(days=99) == (0, 2)
    assert [row[0] for row in owner("SELECT kind FROM events").fetchall()] == ["job.created"]
    seals = owner("SELECT first, pruned_at IS NOT NULL FROM audit_seals ORDER BY id").fetchall()
    assert seals == [(1, True), (2, True)]
    act(database)
    seal(database)
    [line] = trail(database)
    assert line["n"] == 3  # the chain goes on
    assert line["previous"] == owner("SELECT encode(hash, 'hex') FROM audit_seals WHERE first = 2").fetchone()[0]


def test_what_is_pruned_while_it_is_read_is_no_fault(database: Database, owner: Owner) -> None:
    for number in range(2):
        act(database, subject=f"key/{number}")
        seal(database)

    def prune(*call: Any) -> None:
        if "reading.page_mine" in call[2]:
            owner("UPDATE audit_seals SET pruned_at = now() WHERE id = 1; DELETE FROM events WHERE seq = 1")

    with database.begin_system() as connection:
        listen(connection, "after_cursor_execute", prune)
        page = reading.page(connection, reading.Asked(TENANT), limit=10)
    assert [(line.get("fault"), line.get("n")) for line in page.lines] == [(None, 2)]


def test_pruning_never_takes_what_is_young_or_not_sealed_whatever_a_seal_says(database: Database, owner: Owner) -> None:
    act(database, subject="key/unsealed")
    act(database, subject="key/young")
    act(database)
    with database.begin_system() as connection:
        numbering.number(connection)
    owner("UPDATE events SET at = now() - interval '3 years' WHERE subject = 'key/unsealed'")
    with database.begin_system() as connection:  # a program may add a seal, and it may lie
        connection.execute(
            text(
                "INSERT INTO audit_seals (tenant_id, first, seqs, from_at, to_at, previous, hash) VALUES (:tenant, 1, "
                "'{2}', now() - interval '3 years', now() - interval '3 years', :hash, :hash)"
            ),
            {"tenant": TENANT, "hash": bytes(32)},
        )
        assert sealing.forget(connection, 90) == 0
    assert owner("SELECT count(*) FROM events").fetchone() == (3,)


def test_the_database_and_the_code_name_the_same_kinds(database: Database) -> None:
    with database.begin_system() as connection:
        kinds = connection.execute(text("SELECT presswork_untrailed()")).scalar_one()
    assert kinds == [*tables.PROGRESS, *tables.WORK]


def test_no_program_may_change_or_delete_a_seal(database: Database) -> None:
    roles = ("presswork_app", "presswork_tenant", "presswork_web", "presswork_scheduler", "presswork_worker")
    with database.begin_system() as connection:
        for role in roles:
            for right in ("UPDATE", "DELETE", "TRUNCATE"):
                asked = text("SELECT has_table_privilege(:role, 'audit_seals', :right)")
                assert connection.execute(asked, {"role": role, "right": right}).scalar_one() is False, (role, right)
            for table, column in (
                ("audit_seals", "hash"),
                ("audit_seals", "pruned_at"),
                ("audit_cursor", "pruned_seq"),
            ):
                asked = text("SELECT has_column_privilege(:role, :table, :column, 'UPDATE')")
                values = {"role": role, "table": table, "column": column}
                assert connection.execute(asked, values).scalar_one() is False, values
