"""Logs stay small: while a process writes them, and while a state lasts that every request would report."""

import asyncio
import io
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from services.core import logs
from services.local import child
from services.local.child import Child
from tests.waiting import until


@pytest.fixture
def written(monkeypatch):
    """What was logged since the last call, line by line, as values."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.root, "handlers", [])
    logs.configure("test")

    def lines():
        found = [json.loads(line) for line in stream.getvalue().splitlines()]
        stream.seek(0)
        stream.truncate()
        return found

    return lines


HIDDEN = {
    "postgresql://presswork_web:hunter2@db:5432/presswork": "hunter2",
    "redis://:hunter2@10.0.0.1/0": "hunter2",
    "https://store.example/b/a.png?X-Amz-Signature=5ecre7&X-Amz-Expires=300": "5ecre7",
    "pw_28ADKRET_Jd13EJi9QtsF7CU0keqMecQ2m80pyP7cwv4lasCHd5o": "Jd13EJi9",
    "whsec_RWGk06YNhsBYEDhwBVenvfCqGnLATux2p48UhBdaoCQ=": "RWGk06YN",
}


@pytest.mark.parametrize("said", HIDDEN)
def test_secrets_are_left_out_wherever_they_stand_in_a_line(written, said):
    log = logging.getLogger("services.test")
    log.warning("connecting to %s failed", said)
    log.warning("failed", extra={"address": said})
    try:
        raise OSError(f"{said} cannot be reached")
    except OSError:
        log.exception("failed")
    lines = written()
    assert len(lines) == 3 and HIDDEN[said] not in json.dumps(lines)
    assert "***" in lines[0]["event"] and "***" in lines[1]["address"]


def test_a_state_that_every_request_reports_is_a_line_a_minute(written, monkeypatch):
    log = logging.getLogger("asyncio")
    for number in range(1000):
        log.error("socket.accept() out of system resource\nsocket: %s", number)
        log.error("another state")
    assert [line["event"].split("\n")[0] for line in written()] == [
        "socket.accept() out of system resource", "another state",
    ]  # fmt: skip
    monkeypatch.setattr(logs.OncePerState, "SECONDS", 0.0)
    log.error("another state")
    assert [line["repeated"] for line in written()] == [999]


def test_events_and_the_warnings_of_other_loggers_are_all_written(written):
    for _ in range(3):
        logging.getLogger("services.api.middleware").info("request")
        logging.getLogger("worker.device").warning("batch failed")
    assert len(written()) == 6


def test_of_libraries_only_warnings_are_written(written):
    for name in ("library", "library.optimizer", "celery.worker"):
        logging.getLogger(name).info("Skipping constant folding for node 'node_view'")
        logging.getLogger(name).warning("a reason to look")
    for name in ("services.web", "worker.render", "scheduler.app", "__main__"):
        logging.getLogger(name).info("listening")
    assert [line["event"] for line in written()] == ["a reason to look"] * 3 + ["listening"] * 4


def test_a_line_has_its_time_in_utc_and_the_request_that_caused_it(written, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        begin = datetime.now(UTC)
        logging.getLogger("services.x").info("alone")
        token = logs.request_id.set("req_1")
        asyncio.run(anyio.to_thread.run_sync(logging.getLogger("services.x").info, "in a thread"))
        logs.request_id.reset(token)
    finally:
        monkeypatch.undo()
        time.tzset()
    alone, in_a_thread = written()
    assert begin - timedelta(milliseconds=1) <= datetime.fromisoformat(alone["at"]) <= datetime.now(UTC)
    assert alone["at"].endswith("Z") and "request_id" not in alone
    assert in_a_thread["request_id"] == "req_1"


def test_a_log_is_rotated_while_its_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "LOG_BYTES", 10_000)
    log = tmp_path / "logs" / "chatty.log"
    endless = "import itertools\nfor number in itertools.count(): print(f'{number:040}', flush=True)"
    chatty = Child([sys.executable, "-c", endless], env=dict(os.environ), log=log)
    try:
        for _ in range(3):
            until(lambda: log.stat().st_size > 10_000, every=0.001)
            chatty.rotate_log()
            old = log.with_name("chatty.log.1")
            assert old.stat().st_size > 10_000
            until(lambda: log.stat().st_size >= 41, every=0.001)
            with log.open() as file:
                assert int(file.read(41)) > int(old.read_text().splitlines()[-2])
        log.unlink()
        chatty.rotate_log()
        assert chatty.poll() is None
    finally:
        chatty.kill()
