"""`presswork webhooks`: made, changed, tested and removed by options, the log of deliveries, and `listen`."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import standardwebhooks
from typer.testing import CliRunner

from services.cli.app import app
from services.cli.webhook_listening import own_secret
from tests import receiving
from tests.processes import take_interrupts
from tests.receiving import answer, derive, happen, runner
from tests.waiting import until
from tests.web import open_api


@pytest.fixture
def api(settings, store):
    with open_api(receiving.to_this_machine(settings)) as running:
        yield running


@pytest.fixture
def receiver():
    with receiving.receiving() as found:
        yield found


@pytest.fixture
def environment(api):
    return {"PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key, "COLUMNS": "80"}


@pytest.fixture
def run(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def call(*words, code=0):
        result = CliRunner().invoke(app, ["webhooks", *words])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return call


@pytest.fixture
def sending(api):
    """A scheduler's threads that send."""
    stopping, running = threading.Event(), runner(api.database, api.settings)
    thread = threading.Thread(target=running.run, args=(stopping,))
    thread.start()
    yield
    stopping.set()
    thread.join()


def test_a_webhook_is_made_listed_changed_rotated_and_removed(run):
    assert "there is no webhook" in run("list").output
    url = "https://93.184.216.34/hook"
    made = json.loads(run("create", url, "--event", "job.*", "--label", "run=a", "--json").stdout)
    assert (made["url"], made["events"], made["labels"]) == (url, ["job.*"], {"run": "a"})
    assert run("show", made["id"], "--secret").stdout.strip() == made["secret"]
    assert made["id"] in run("list").output and "enabled" in run("show", made["id"]).output
    assert "disabled" in run("set", made["id"], "--disable").output
    changed = json.loads(run("set", made["id"], "--enable", "--label", "", "--json").stdout)
    assert changed["enabled"] and changed["labels"] == {}
    assert "whsec_" in run("rotate", made["id"]).output
    assert run("show", made["id"], "--secret").stdout.strip() != made["secret"]
    run("set", made["id"], code=2)
    assert "deleted" in run("rm", made["id"]).output
    run("show", made["id"], code=4)
    refused = run("create", "http://10.0.0.1/", code=5)
    assert "url is refused" in refused.output


def test_a_test_is_waited_for_and_the_log_shows_each_try(run, receiver, sending):
    made = json.loads(run("create", receiver.url, "--json").stdout)
    assert "200" in run("test", made["id"]).output
    receiver.reply = lambda handler: answer(handler, 503)
    failed = json.loads(run("test", made["id"], "--json", code=1).stdout)
    assert failed["log"][0]["response_status"] == 503
    listed = run("deliveries", made["id"]).output
    assert "delivered" in listed and "pending" in listed and max(map(len, listed.splitlines())) <= 80
    receiver.reply = answer
    again = json.loads(run("redeliver", made["id"], failed["id"], "--json").stdout)
    assert [one["response_status"] for one in again["log"]] == [503, 200]
    shown = run("deliveries", made["id"], failed["id"]).output
    assert "503" in shown and again["message_id"] in shown
    assert len(run("deliveries", made["id"], "--status", "delivered", "--json").stdout.splitlines()) == 2


def test_listen_brings_signed_messages_to_a_local_program_until_it_is_stopped(api, environment, receiver):
    words = [sys.executable, "-m", "services.cli", "webhooks", "listen", "--forward", receiver.url, "--event", "view.*"]
    root = Path(__file__).parents[2]
    listening = subprocess.Popen(
        words, env=os.environ | environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=take_interrupts,  # noqa: PLW1509  no lock of a thread is needed there
    )  # fmt: skip
    try:
        told = listening.stderr.readline()
        secret = re.search(r"whsec_\S+", told)[0].rstrip(";")
        assert secret == own_secret(api.key) and api.key not in told

        def told_of_one():
            happen(api.database, "view.saved", "view/1")
            happen(api.database, "file.created", "file/1")
            derive(api.database)
            return receiver.came

        until(told_of_one, seconds=30, every=0.5)
        receiver.reply = lambda handler: answer(handler, 500, b"no such table")
        told_of_one()
        lines = []
        until(lambda: lines.append(listening.stdout.readline()) or "500" in lines[-1], seconds=30)
    finally:
        listening.send_signal(signal.SIGINT)
        listening.wait(20)
    assert listening.returncode == 130
    assert set(receiver.types) == {"view.saved"}
    assert "view.saved  view_" in lines[0] and "-> 200" in lines[0] and "no such table" in lines[-1]
    for headers, body in receiver.came:
        standardwebhooks.Webhook(secret).verify(body.decode(), headers)
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == len(receiver.came), "each once"


@pytest.mark.parametrize(
    "words",
    [
        ("--forward", "ftp://here/"), ("--forward", "http://127.0.0.1:1/", "--event", "job.done"),
        ("--forward", "http://127.0.0.1:1/", "--secret", "hunter2"),
    ],
)  # fmt: skip
def test_listen_refuses_what_cannot_work(run, words):
    run("listen", *words, code=2)
