"""A file as large as the stock client sends, and schedulers that are killed while they read it and answer it."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.storage.s3 import S3Store
from tests.processes import Process
from tests.waiting import until
from tests.web import Api

LINES = 50_000  # as many as the stock client's own service takes
SOME = 20_000  # which are read long enough for a kill
ENDPOINT = "/v1/images/generations"


@pytest.fixture
def scheduler(environ: dict[str, str], tmp_path: Path, store: S3Store) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []

    def start() -> Process:
        started.append(Process("scheduler.app", environ, tmp_path / "scheduler.log"))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def web(environ: dict[str, str], tmp_path: Path, api: Api) -> Iterator[tuple[Process, openai.OpenAI]]:
    """A web server as a process of its own, on the database of `api`, and a client of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = Process("services.web", {**environ, "PRESSWORK_PORT": str(port)}, tmp_path / "web.log")
    until(lambda: "listening" in process.text())
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=api.key, max_retries=0) as client:
        yield process, client
    process.stop()


def requests(count: int) -> bytes:
    bodies = ({"prompt": f"a mug on a wooden table, number {number}", "seed": number} for number in range(count))
    lines = ({"custom_id": f"request-{number}", "method": "POST", "url": ENDPOINT, "body": body}
             for number, body in enumerate(bodies))  # fmt: skip
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def start(client: openai.OpenAI, data: bytes) -> Any:
    file = client.files.create(file=("requests.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")


def rows(database: Database, table: str) -> int:
    with database.begin_system() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def under_way(database: Database, background_task: str) -> bool:
    named = text("SELECT count(*) FROM leases WHERE name LIKE :name")
    with database.begin_system() as connection:
        return bool(connection.execute(named, {"name": f"{background_task}%"}).scalar_one())


def forget_leases(database: Database) -> None:
    """What a killed holder had is free again, as after half a minute."""
    with database.begin_system() as connection:
        connection.execute(text("UPDATE leases SET expires_at = '-infinity'"))


def test_fifty_thousand_lines_are_accepted_within_ten_seconds_and_little_memory(web, scheduler, api):
    process, client = web
    scheduler()
    until(lambda: under_way(api.database, "leader"))
    data = requests(LINES)
    before = time.monotonic()
    batch = start(client, data)
    until(lambda: client.batches.retrieve(batch.id).status != "validating")
    assert time.monotonic() - before < 10
    assert psutil.Process(process.pid).memory_info().rss < 400 << 20
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.request_counts.total) == ("in_progress", LINES)
    assert rows(api.database, "images") == LINES


def test_a_scheduler_killed_while_it_reads_a_file_or_writes_the_answer_is_followed_by_another(web, scheduler, api):
    _, client = web
    batch = start(client, requests(SOME))
    first = scheduler()
    until(lambda: under_way(api.database, "validate/"), every=0.01)
    first.kill()
    assert client.batches.retrieve(batch.id).status == "validating"
    assert rows(api.database, "images") == rows(api.database, "payloads") == 0
    forget_leases(api.database)
    second = scheduler()
    until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    assert rows(api.database, "images") == SOME
    client.batches.cancel(batch.id)
    until(lambda: under_way(api.database, "close/"), every=0.01)
    second.kill()
    assert client.batches.retrieve(batch.id).status == "cancelling"
    forget_leases(api.database)
    scheduler()
    ended = until(lambda: (found := client.batches.retrieve(batch.id)).status == "cancelled" and found)
    assert (ended.request_counts.failed, ended.output_file_id) == (SOME, None)
    listed = [json.loads(line)["custom_id"] for line in client.files.content(ended.error_file_id).text.splitlines()]
    assert listed == [f"request-{number}" for number in range(SOME)]
    assert rows(api.database, "files") == 2
