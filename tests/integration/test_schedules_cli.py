"""`presswork schedules`: of a file or by options, for people in 80 columns, and as JSON."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from services.cli.app import app
from tests.scheduling import NIGHT, fire, first_at, submitter
from tests.web import Api

_numbers = itertools.count(1)
Run = Callable[..., Result]
TOML = """
[schedule.nightly]
cron = "0 1 * * *"
timezone = "Europe/Berlin"
deadline = 06:00:00
[schedule.nightly.target.job]
priority = "low"
images = [{ prompt = "a mug", n = 2 }]
[schedule.once]
at = 2099-01-01T06:00:00+01:00
target.job.images = [{ prompt = "a hat" }]
"""


@pytest.fixture
def api(served: Api) -> Iterator[Api]:
    """The server of the whole file, for a tenant of the test's own."""
    _, key = served.new_tenant(f"tenant-{next(_numbers)}")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60, trust_env=False) as http:
        yield dataclasses.replace(served, key=key, http=http)


@pytest.fixture
def run(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    for name, value in {"PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key, "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)

    def call(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["schedules", *words])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return call


def test_a_file_is_applied_and_each_schedule_is_listed_shown_paused_run_and_removed(run: Run, api: Api) -> None:
    assert "there is no schedule" in run("ls").output
    Path("nightly.toml").write_text(TOML)
    for _ in range(2):
        assert [json.loads(line)["name"] for line in run("apply", "nightly.toml", "--json").stdout.splitlines()] == [
            "nightly", "once",
        ]  # fmt: skip
    shown = json.loads(run("show", "nightly", "--json").stdout)
    assert (shown["deadline"], shown["target"]["job"]["images"]) == ("06:00", [{"prompt": "a mug", "n": 2}])
    assert json.loads(run("show", "once", "--json").stdout)["at"] == "2099-01-01T05:00:00.000Z"
    listed = run("ls").stdout
    assert "0 1 * * *" in listed and "Europe/Berlin" in listed and "once" in listed
    assert max(map(len, listed.splitlines())) <= 80
    assert len(run("next", "nightly", "-n", "5").stdout.splitlines()) == 6
    assert "paused" in run("pause", "nightly").stdout
    assert "it does not fire" in run("next", "nightly").output
    run("resume", "nightly")
    assert "submitting" in run("run", "nightly").output
    submitter(api.database, api.settings)()
    [found] = [json.loads(line) for line in run("runs", "nightly", "--json").stdout.splitlines()]
    assert found["status"] == "running"
    at_one = NIGHT - timedelta(hours=1)  # in Berlin
    first_at(api.database, at_one)
    fire(api.database, at_one)
    table = run("runs", "nightly").stdout
    assert found["job_id"] in table and "skipped" in table and "run by key/" in table
    assert "if the last goes on" in run("show", "nightly").stdout
    assert "deleted the schedule once" in run("rm", "once").output
    assert "There is no schedule" in run("rm", "once", code=4).output


def test_a_schedule_is_made_by_options_and_what_is_wrong_is_one_sentence(run: Run) -> None:
    Path("job.json").write_text('{"images": [{"prompt": "a mug"}]}')
    options = ["apply", "--name", "weekly", "--timezone", "Asia/Tokyo", "--job", "job.json"]
    assert "0 9 * * MON" in run(*options, "--cron", "0 9 * * mon", "--overlap", "queue").stdout
    refused = run(*options, "--cron", "0 0 30 2 *", code=5)
    assert 'cron "0 0 30 2 *" never fires within 5 years' in " ".join(refused.output.split())
    for words, said in (
        (["apply"], "Give a file, or --name"),
        (["apply", "--cron", "0 1 * * *", "--job", "job.json"], "A schedule has no name"),
        (["apply", "--name", "a", "--job", "job.json", "--batch", "file-1"], "not both"),
    ):
        assert said in run(*words, code=2).output
    Path("bad.toml").write_text("cron = ")
    assert "bad.toml cannot be read as TOML" in run("apply", "bad.toml", code=5).output
