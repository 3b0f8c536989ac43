"""The audit trail over HTTP and on the command line: whose it is, and that each change of a file is found."""

import gzip
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.app import app
from services.core.events import numbering
from services.core.events.queries import Event
from services.core.model import audit_chain
from services.core.tenants import api_keys
from services.core.tenants.tenants import public_id
from services.core.trail import records, sealing
from services.local.stack import Stack
from tests import factories
from tests.web import Api

SUBJECTS = {
    "job": "job_000000000000h",
    "export": "export_000000000000h",
    "file": "file-000000000000h",
    "upload": "upload_000000000000h",
    "bulk": "bulk_000000000000h",
    "view": "view_000000000000h",
    "tenant": "tenant_000000000000h",
    "webhook": "whe_000000000000h",
    "policy_term": "term_000000000000h",
    "key": "17",
}


def seal(api: Api) -> None:
    with api.database.begin_system() as connection:
        numbering.number(connection)
        sealing.seal(connection)


def read(api: Api, key: str, **asked: Any) -> list[dict[str, Any]]:
    answer = httpx.get(f"{api.url}/v1/audit", params=asked, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def keys(api: Api, count: int) -> None:
    for number in range(count):
        assert api.http.post("/v1/keys", json={"name": f"Ключ {number}", "scopes": ["view"]}).status_code == 201
        seal(api)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["audit", *words])


@pytest.fixture
def command(api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    return api


def test_a_tenant_reads_its_own_trail_and_the_operators_administrators_read_all(api: Api) -> None:
    _, stranger = api.new_tenant("other")
    keys(api, 2)
    api.submit({"prompt": "a"})
    seal(api)
    mine, theirs = read(api, api.key), read(api, stranger)
    assert [(line["n"], line["event"]) for line in mine[:-1]] == [(n, "key.issued") for n in (1, 2, 3)]
    chain = {"n": 3, "hash": mine[2]["hash"]}
    assert mine[-1] == {"next_cursor": None, "chains": {mine[0]["tenant"]: chain}}
    assert [line["n"] for line in theirs[:-1]] == [1] and theirs[0]["tenant"] != mine[0]["tenant"]
    assert read(api, api.key, tenant="other") == theirs
    everything = [(line["tenant"], line["n"]) for line in read(api, api.key, tenant="*")[:-1]]
    ends = read(api, api.key, tenant="*")[-1]["chains"]
    assert ends == mine[-1]["chains"] | theirs[-1]["chains"] and len(ends) == 2
    assert sorted(everything) == sorted((line["tenant"], line["n"]) for line in (*mine[:-1], *theirs[:-1]))
    for asked, status, code in (
        ({"tenant": "default"}, 404, "not_found"), ({"tenant": "*"}, 403, "not_operator"),
        ({"since": "2026-11-26"}, 422, "invalid_parameter"), ({"cursor": "x"}, 400, "invalid_cursor"),
    ):  # fmt: skip
        answer = httpx.get(f"{api.url}/v1/audit", params=asked, headers={"Authorization": f"Bearer {stranger}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), asked


def test_pages_hold_whole_ranges_and_go_on_where_the_one_before_ended(api: Api) -> None:
    keys(api, 4)
    whole, pages, asked = read(api, api.key)[:-1], [], {"limit": 2}
    while True:
        page = read(api, api.key, **asked)
        pages += page[:-1]
        if page[-1]["next_cursor"] is None:
            break
        asked["cursor"] = page[-1]["next_cursor"]
    assert pages == whole and [line["n"] for line in whole] == [1, 2, 3, 4, 5]
    middle = whole[2]["at"]
    assert [line["n"] for line in read(api, api.key, since=middle)[:-1]] == [3, 4, 5]
    assert [line["n"] for line in read(api, api.key, until=middle)[:-1]] == [1, 2]
    end = {"next_cursor": None, "chains": {whole[0]["tenant"]: {"n": 5, "hash": whole[-1]["hash"]}}}
    assert read(api, api.key, since="2999-01-01T00:00:00Z") == [end]
    actor = f"key/{api_keys.id_of(api.key)}"
    assert [line["n"] for line in read(api, api.key, actor=actor)[:-1]] == [2, 3, 4, 5]
    assert read(api, api.key, event="key.revoked") == [end]


def tampered(lines: list[bytes]) -> dict[str, tuple[list[bytes], int, str]]:
    """What somebody makes of a file of a heading, five records and the end; the line that is named, and why."""

    def changed(number: int, **fields: Any) -> bytes:
        return audit_chain.canonical(json.loads(lines[number]) | fields)

    def relinked(number: int, **fields: Any) -> bytes:
        new = json.loads(lines[number]) | fields
        return audit_chain.canonical(new | {"hash": audit_chain.link(bytes.fromhex(new["previous"]), new).hex()})

    head, one, two, three, four, five, end = lines
    hidden = two.replace(b'{"actor"', b'{"actor":"key/other","actor"')  # most programs read the last one of a name
    return {
        "changed": ([head, one, changed(2, actor="key/other"), three, four, five, end], 3, "it was changed"),
        "hash": ([head, one, changed(2, hash="00" * 32), three, four, five, end], 3, "it was changed"),
        "relinked": ([head, one, relinked(2, actor="x"), three, four, five, end], 4, "does not follow"),
        "hidden": ([head, one, hidden, three, four, five, end], 3, "not written as it was exported"),
        "spaces": ([head, one, two.replace(b",", b", "), three, four, five, end], 3, "not written as"),
        "end": ([head, one, two, three, four, five, end.replace(b"{", b'{"end":false,', 1)], 7, "not written as"),
        "head": ([head.replace(b"{", b'{"filtered":true,', 1), one, two, three, four, five, end], 1, "not written as"),
        "tenant": ([head, relinked(1, tenant=["x"]), two, three, four, five, end], 2, "no record"),
        "half": ([head, one.replace(b"key.issued", b"\\ud800"), two, three, four, five, end], 2, "no JSON"),
        "dropped": ([head, one, three, four, five, end], 3, "before it record 2 was dropped"),
        "dropped two": ([head, one, four, five, end], 3, "before it records 2 to 3 were dropped"),
        "twice": ([head, one, two, two, three, four, five, end], 4, "inserted or moved"),
        "moved": ([head, two, one, three, four, five, end], 3, "inserted or moved"),
        "inserted": ([head, one, two, b'{"n": 3}', three, four, five, end], 4, "no record"),
        "field": ([head, one, changed(2, note="x"), three, four, five, end], 3, "no record"),
        "last dropped": ([head, one, two, three, four, end], 6, "dropped or inserted"),
        "cut short": ([head, one, two, three], 5, "cut short"),
        "behind": ([*lines, one], 8, "behind the last line"),
        "no heading": ([one, two, three, four, five, end], 1, "not the first line"),
        "no JSON": ([head, one, b"{", three, four, five, end], 3, "no JSON"),
        "empty": ([], 1, "not the first line"),
    }


def test_an_exported_file_is_verified_and_each_change_of_it_is_named(command: Api, tmp_path: Path) -> None:
    keys(command, 4)
    plain, packed = tmp_path / "trail.jsonl", tmp_path / "trail.jsonl.gz"
    for path in (plain, packed):
        made = run("export", "-o", str(path))
        assert made.exit_code == 0 and "5 records" in made.output, made.output
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["trail.jsonl", "trail.jsonl.gz"]
    lines = plain.read_bytes().splitlines()
    last = json.loads(lines[-2])
    good = run("verify", str(plain), str(packed))
    assert good.exit_code == 0 and good.output.count("5 records, unchanged") == 2
    assert f"record 5 has the hash {last['hash']}" in good.output
    for name, (given, line, why) in tampered(lines).items():
        path = tmp_path / "other.jsonl"
        path.write_bytes(b"".join(one + b"\n" for one in given))
        bad = run("verify", "--json", str(path))
        said = json.loads(bad.stdout)
        assert (bad.exit_code, said["unchanged"], said["line"]) == (1, False, line), (name, bad.output)
        assert why in said["trouble"], (name, said)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed.read_bytes()[:-20])
    cut = run("verify", str(tmp_path / "cut.jsonl.gz"))
    assert cut.exit_code == 1 and "cut short" in cut.output
    assert run("verify", str(tmp_path / "nothing.jsonl")).exit_code == 1


def test_a_later_export_shows_whether_the_trail_was_rewritten_in_between(
    command: Api, stack: Stack, tmp_path: Path
) -> None:
    """By somebody who owns the database, and makes all hashes anew."""
    owner = f"{stack.superuser_url.rpartition('/')[0]}/{command.settings.database_url.rpartition('/')[2]}".replace(
        "+psycopg", ""
    )
    keys(command, 2)
    first, second, third, fourth = (str(tmp_path / f"{name}.jsonl") for name in ("first", "second", "third", "fourth"))
    assert run("export", "-o", first).exit_code == 0
    keys(command, 2)
    since = json.loads(Path(first).read_bytes().splitlines()[-2])["at"]
    assert run("export", "-o", second, "--since", since).exit_code == 0
    agreed = run("verify", first, second)
    assert agreed.exit_code == 0 and "3 records" in agreed.output, agreed.output
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("UPDATE events SET actor = 'cli/nobody' WHERE seq = 2")
    found = run("export", "-o", third)
    assert found.exit_code == 3 and "no longer as it was sealed" in found.output, found.output
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("TRUNCATE audit_seals")
        connection.execute("UPDATE audit_cursor SET sealed_seq = 0")
    seal(command)
    assert run("export", "-o", third).exit_code == 0
    assert run("verify", third).exit_code == 0  # it is sound, taken alone
    keys(command, 1)
    assert run("export", "-o", third).exit_code == 0
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("DELETE FROM audit_seals WHERE first > 5")
    assert run("export", "-o", fourth).exit_code == 0
    cut = run("verify", third, fourth)
    assert cut.exit_code == 1 and "ends at record 5, and " in cut.output.replace("\n", " "), cut.output
    until = json.loads(Path(fourth).read_bytes().splitlines()[-2])["at"]
    assert run("export", "-o", fourth, "--until", until).exit_code == 0  # which says all the same where the chain ends
    assert run("verify", third, fourth).exit_code == 1
    rewritten = run("verify", first, third)
    assert rewritten.exit_code == 1 and "record 2 of" in rewritten.output and "another one than in" in rewritten.output
    assert run("verify", second, third).exit_code == 1


def gone(command: Api, stack: Stack, tenant: int) -> None:
    """Somebody who owns the database takes all of a tenant's trail away."""
    owner = f"{stack.superuser_url.rpartition('/')[0]}/{command.settings.database_url.rpartition('/')[2]}"
    with psycopg.connect(owner.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DELETE FROM audit_seals WHERE tenant_id = %s", (tenant,))
        connection.execute("DELETE FROM events WHERE tenant_id = %s", (tenant,))


@pytest.mark.parametrize("options", [(), ("--since", "2999-01-01"), ("--event", "key.revoked")])
def test_a_trail_that_is_gone_as_a_whole_is_missed(
    command: Api, stack: Stack, tmp_path: Path, options: tuple[str, ...]
) -> None:
    other, _ = command.new_tenant("other")
    keys(command, 1)
    before, mine, after = (str(tmp_path / f"{name}.jsonl") for name in ("before", "mine", "after"))
    assert run("export", "-o", before, "--tenant", "*").exit_code == 0
    assert run("export", "-o", after, "--tenant", "*", *options).exit_code == 0
    assert run("verify", before, after).exit_code == 0
    gone(command, stack, other)
    keys(command, 1)
    assert run("export", "-o", mine).exit_code == 0
    assert run("verify", before, mine).exit_code == 0  # which tells nothing of other tenants
    assert run("export", "-o", after, "--tenant", "*", *options).exit_code == 0
    missed = run("verify", before, mine, after)
    said = missed.output.replace("\n", " ")
    assert missed.exit_code == 1 and f"nothing is left of the trail of {public_id(other)}" in said, missed.output


def test_a_deleted_tenant_takes_its_trail_along_and_that_is_on_record(
    command: Api, stack: Stack, tmp_path: Path
) -> None:
    other, _ = command.new_tenant("other")
    keys(command, 1)
    before, after = str(tmp_path / "before.jsonl"), str(tmp_path / "after.jsonl.gz")
    assert run("export", "-o", before, "--tenant", "*").exit_code == 0
    assert command.http.delete("/v1/tenants/other", params={"confirm": "other"}).status_code in (200, 202)
    seal(command)
    gone(command, stack, other)
    assert run("export", "-o", after, "--tenant", "*").exit_code == 0
    assert run("verify", before, after).exit_code == 0
    assert run("export", "-o", after, "--tenant", "*", "--since", "2999-01-01").exit_code == 0
    assert run("verify", before, after).exit_code == 1  # the record that it was deleted is in neither


def test_an_export_of_one_actor_says_that_others_are_left_out(command: Api, tmp_path: Path) -> None:
    keys(command, 1)
    with command.database.begin_system() as connection:
        api_keys.issue_key(connection, command.settings.secret, factories.TENANT, "by hand")
    keys(command, 1)
    path = tmp_path / "mine.jsonl"
    assert run("export", "-o", str(path), "--actor", f"key/{api_keys.id_of(command.key)}").exit_code == 0
    assert [json.loads(line).get("n") for line in path.read_bytes().splitlines()] == [None, 2, 4, None]
    said = run("verify", str(path))
    assert said.exit_code == 0 and "left out" in said.output


def test_a_wrong_word_or_a_key_without_the_scope_leaves_the_file_as_it_was(
    command: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trail.jsonl"
    path.write_text("before")
    assert run("export", "-o", str(path), "--since", "yesterday").exit_code == 2
    with command.database.begin_system() as connection:
        viewer = api_keys.issue_key(connection, command.settings.secret, factories.TENANT, "viewer", given=["view"])
    monkeypatch.setenv("PRESSWORK_API_KEY", viewer)
    refused = run("export", "-o", str(path))
    assert refused.exit_code == 5 and "admin" in refused.output
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_record_keeps_its_form() -> None:
    """Sealed hashes stay for years: whoever changes the form makes all of them wrong."""
    at = datetime(2026, 11, 27, 2, 0, 0, 1, tzinfo=timezone(timedelta(hours=1)))
    event = Event(4, 1, at, "cli/Zoë", "job.deleted", "job/17", {"job": 17, "weight": 2.5, "a": None})
    record = records.record(event, 3)
    assert (
        audit_chain.canonical(record).decode() == '{"actor":"cli/Zoë","at":"2026-11-27T01:00:00.000001Z",'
        '"data":{"job":"job_000000000000h","weight":2.5},"event":"job.deleted","n":3,"seq":4,"subject":"job_000000000000h","subject_type":"job","tenant":"tenant_0000000000001"}'
    )
    assert (
        audit_chain.link(audit_chain.GENESIS, record).hex()
        == "c114a88c6bf61b88fdbac41b14c5c857e0dab89f7188f1504fb9c11a0efd064b"
    )
    assert {kind: records.subject(replace(event, subject=f"{kind}/17"))[1] for kind in SUBJECTS} == SUBJECTS
