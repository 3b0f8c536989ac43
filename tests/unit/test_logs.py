"""Logs stay small: while a process writes them, and while a state lasts that every request would report."""

import io
import json
import logging
import os
import sys

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
