"""`presswork top` on a real terminal, and `presswork wait`."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.jobs import lifecycle
from services.core.model.specs import FailedImage
from services.core.queue import counters
from tests import factories
from tests.processes import take_interrupts
from tests.waiting import until
from tests.web import Api

ROOT = Path(__file__).parents[2]


class Terminal:
    """A command on a pseudo-terminal of 80 columns and 24 lines; `text` is all that it has printed."""

    def __init__(self, primary: int, process: subprocess.Popen[bytes]) -> None:
        self._primary, self.process = primary, process
        self.text = ""

    def shows(self, pattern: str) -> bool:
        while select.select([self._primary], [], [], 0)[0]:
            try:
                more = os.read(self._primary, 65536)
            except OSError:  # the command has ended
                break
            self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", more.decode(errors="replace"))
        return re.search(pattern, self.text) is not None

    def type(self, keys: str) -> None:
        self.text = ""
        os.write(self._primary, keys.encode())

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._primary)[3] & termios.ECHO)


@contextmanager
def terminal(api: Api, folder: Path, *words: str) -> Iterator[Terminal]:
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = os.environ | {
        "PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key, "PYTHONPATH": str(ROOT), "TERM": "xterm",
    }  # fmt: skip
    environ.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", *words], cwd=folder, env=environ, stdin=secondary, stdout=secondary,
        stderr=secondary, preexec_fn=take_interrupts,  # noqa: PLW1509  no lock of a thread is needed there
    )  # fmt: skip
    try:
        yield Terminal(primary, process)
    finally:
        process.kill()
        process.wait()
        os.close(primary)
        os.close(secondary)


def state(api: Api, job: str) -> tuple[str, bool, str]:
    found = api.http.get(f"/v1/jobs/{job}").json()
    return found["status"], found["paused"], found["priority"]


def test_top_shows_every_job_and_its_keys_act_on_the_chosen_one(api: Api, tmp_path: Path) -> None:
    other = api.submit({"prompt": "a hat"})["id"]
    job = api.submit({"prompt": "a mug", "n": 3}, labels={"for": "shop"})["id"]
    with terminal(api, tmp_path, "top") as screen:
        until(lambda: screen.shows(f"{job} queued.*for=shop") and screen.shows(other))
        assert not screen.echoes()
        screen.type("p")
        until(lambda: state(api, job)[1])
        until(lambda: screen.shows(f"{job} is paused") and screen.shows(f"{job} paused"))
        screen.type("p")
        until(lambda: not state(api, job)[1])
        until(lambda: screen.shows(f"{job} queued"))
        screen.type("+")
        until(lambda: state(api, job)[2] == "high")
        screen.type("cn")  # a question, and no
        screen.type("\x1b[B\r")  # the next one, opened
        until(lambda: screen.shows(f"{other}, normal priority|0 of 1 done"))
        assert state(api, job)[0] == "queued"
        screen.type("c")
        until(lambda: screen.shows(rf"Cancel {other}, with 1 image not done\? y or n"))
        screen.type("y")
        until(lambda: state(api, other)[0] in ("cancelling", "cancelled"))
        assert state(api, job)[0] == "queued"
        screen.type("q")
        assert screen.process.wait(90) == 0
        assert screen.echoes()


def test_top_says_that_nobody_answers_and_gives_the_terminal_back_when_it_is_ended(api: Api, tmp_path: Path) -> None:
    job = api.submit({"prompt": "a mug"})["id"]
    with terminal(api, tmp_path, "top") as screen:
        until(lambda: screen.shows(job))
        with api.database.begin_system() as connection:
            connection.execute(text("UPDATE api_keys SET revoked_at = now()"))
        until(lambda: screen.shows("no answer for .*key"))
        screen.process.terminate()
        assert screen.process.wait(90) == 143
        assert screen.echoes()


def test_top_needs_a_terminal(run: Callable[..., Result]) -> None:
    assert "`presswork top` needs a terminal" in run("top", code=2).stderr


@pytest.fixture
def run(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    monkeypatch.setenv("PRESSWORK_CONFIG", str(tmp_path / "config.toml"))

    def call(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return call


def settle(api: Api, *failed: int) -> None:
    """Renders one claim; images with these indexes fail."""
    claim = factories.claim(api.database)
    stored = [one for one in factories.stored(claim, b"x") if one.index not in failed]
    lost = [place for place in factories.places(claim) if place[1] in failed]
    broken = [FailedImage(*place, "error", "It broke.") for place in lost]
    factories.settle(api.database, claim, stored=stored, failed=broken)
    with api.database.begin_system() as connection:
        counters.fold(connection)
        lifecycle.finish(connection)


def test_wait_ends_when_every_job_of_the_label_has_ended(run: Callable[..., Result], api: Api) -> None:
    first = api.submit({"prompt": "a"}, labels={"run": "nightly"})["id"]
    assert "No job has the label run=weekly." in run("wait", "run=weekly", code=4).stderr
    assert "the timeout came first: 0 of 1 image in 1 job" in run("wait", first, "--timeout", "0min", code=1).stderr
    settle(api)
    assert "1 of 1 image in 1 job done" in run("wait", "run=nightly").stderr
    api.submit({"prompt": "b", "n": 2}, labels={"run": "nightly"})
    settle(api, 1)
    shown = run("wait", "run=nightly", "--json", code=3)
    assert {json.loads(line)["status"] for line in shown.stdout.splitlines()} == {"completed"}
    assert "2 of 3 images in 2 jobs done, 1 failed" in run("wait", "run=nightly", first, code=3).stderr
    for wrong in (["--timeout", "soon"], ["--done-by", "25:00"], ["--done-by", "2020-01-01T00:00Z"]):
        run("wait", first, *wrong, code=2)
