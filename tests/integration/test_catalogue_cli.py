"""`presswork catalogue` against the real API: what a person sees, what a program reads, and how each command ends."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from services.cli.app import app
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from tests import cataloguing
from tests.processes import take_interrupts
from tests.waiting import until
from tests.web import Api

TOML = """
[catalogue.shop]
source = { file = "feed.csv" }
id = "sku"
removed_limit = 1
[catalogue.shop.variants.front]
prompt = "{{ colour }}"
size = "64x64"
"""
Run = Callable[..., Result]


@pytest.fixture
def api(served: Api, tmp_path: Path) -> Iterator[Api]:
    """The server, for a tenant of the test's own."""
    _, key = served.new_tenant(str(tmp_path))
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:
        yield dataclasses.replace(served, key=key, http=http)


@pytest.fixture
def run(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, in a folder with a catalogue's file; its code is checked."""
    (tmp_path / "shop.toml").write_text(TOML)
    (tmp_path / "feed.csv").write_text("sku,colour\na,red\nb,blue\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    monkeypatch.setenv("PRESSWORK_CONFIG", str(tmp_path / "config.toml"))

    def call(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["catalogue", *words])
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return call


@pytest.fixture
def applied(run: Run) -> Run:
    run("apply", "shop.toml")
    return run


def test_a_file_with_a_schedule_that_never_fires_changes_nothing(run: Run, api: Api) -> None:
    Path("two.toml").write_text(
        TOML
        + TOML.replace("catalogue.shop", "catalogue.other")
        + '[catalogue.other.schedule]\ncron = "0 0 31 2 *"\ntimezone = "Europe/Berlin"\n'
    )
    refused = run("apply", "two.toml", code=5)
    assert "when it runs is not as it must be; nothing was changed" in refused.output
    assert 'other: cron "0 0 31 2 *" never fires' in " ".join(refused.output.split())
    assert api.http.get("/v1/catalogues").json()["data"] == []
    Path("two.toml").write_text(Path("two.toml").read_text().replace("Europe/Berlin", "Europe/Berlim"))
    assert "Europe/Berlin" in run("apply", "two.toml", code=5).output  # what was probably meant


@contextmanager
def scheduler(api: Api, failing: tuple[str, ...] = ()) -> Iterator[None]:
    """Meanwhile runs are taken to their ends."""
    store, stop = S3Store(api.settings), threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            if live(api):
                cataloguing.tend(api.database, api.settings, store)
                cataloguing.render(api.database, store, failing=failing)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def feed(**colours: str) -> None:
    """What the shop has tonight."""
    rows = "".join(f"{sku},{colour}\n" for sku, colour in colours.items())
    Path("feed.csv").write_text(f"sku,colour\n{rows}")


def live(api: Api) -> list[runs.Run]:
    """The runs of the test's catalogue that have not ended."""
    with api.database.begin_system() as connection:
        tenant = api_keys.authenticate(connection, api.settings.secrets, api.key).tenant_id
        return runs.live(connection, catalogues.find(connection, tenant, "shop").id)


def cancelled(api: Api) -> None:
    """A scheduler ends what was cancelled."""
    cataloguing.tend(api.database, api.settings, S3Store(api.settings))
    assert live(api) == []


def documents(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_a_file_is_applied_and_its_source_uploaded_once(run: Run, api: Api) -> None:
    first = run("apply", "shop.toml")
    assert "feed.csv: uploaded (file-" in first.stderr
    assert "shop is made" in first.stderr
    again = run("apply", "shop.toml")
    assert "feed.csv: as uploaded before" in again.stderr
    assert "shop is as it was" in again.stderr
    assert len(api.http.get("/v1/files").json()["data"]) == 1
    Path("feed.csv").write_text("sku,colour\na,pink\nb,blue\n")
    [made] = documents(run("apply", "shop.toml", "--json"))
    assert api.http.get(f"/v1/files/{made['file_id']}/content").text == "sku,colour\na,pink\nb,blue\n"
    assert [one["name"] for one in documents(run("ls", "--json"))] == ["shop"]
    assert "nothing yet" in run("ls").stdout
    assert "it has not run yet" in run("show", "shop").stderr


def test_what_is_wrong_with_a_file_is_said_field_by_field(run: Run) -> None:
    Path("wrong.toml").write_text(TOML.replace('id = "sku"', "keep = 0"))
    refused = run("apply", "wrong.toml", code=5)
    assert "id is missing; it must be the name of the column that identifies an item." in squeezed(refused.stderr)
    assert "keep is 0; it must be a whole number from 1 to 1,000" in squeezed(refused.stderr)
    [error] = documents(run("apply", "wrong.toml", "--json", code=5))
    assert [one["param"] for one in error["error"]["errors"]] == ["id", "keep"]
    Path("wrong.toml").write_text("[catalogue")
    assert "wrong.toml: " in run("apply", "wrong.toml", code=5).stderr
    assert run("show", "nothing", code=4).stderr == "presswork: There is no catalogue nothing.\n"


def test_a_plan_shows_what_a_run_would_do(applied: Run, api: Api) -> None:
    feed(a="red", b="blue", c="")
    with scheduler(api):
        shown = applied("plan", "shop").stdout
        [found] = documents(applied("plan", "shop", "--json"))
    words = squeezed(shown)
    assert "shop planned" in words
    assert "new 2 not in the version before" in words
    assert "broken 1 cannot be rendered as it stands" in words
    assert "time not known: this model was not measured yet" in words
    assert "4 c front The template gives nothing but spaces." in words
    assert (found["counts"]["new"], found["estimate"]["images"], found["problems"][0]["line"]) == (2, 2, 4)
    assert api.http.get("/v1/catalogues/shop").json()["published"] is None


def test_runs_publish_or_say_why_not_and_versions_are_seen_and_rolled_back(applied: Run, api: Api) -> None:
    with scheduler(api):
        shown = applied("run", "shop")
    assert "shop published, version 1" in squeezed(shown.stdout)
    assert "rendered 2 done" in squeezed(shown.stdout)
    feed(a="odd", b="blue")
    with scheduler(api, failing=("odd",)):
        kept = applied("run", "shop", code=7)
    assert "1 of 2 pictures are good, 50.0%; publish.require asks for 100.0%." in squeezed(kept.stdout)
    assert "2 a front It cannot be drawn." in squeezed(kept.stdout)
    feed(a="pink", b="blue")
    with scheduler(api):
        last = documents(applied("run", "shop", "--json"))[-1]
    assert (last["state"], last["problems"]) == ("published", [])
    assert [one["version"] for one in documents(applied("versions", "shop", "--json"))] == [3, 2, 1]
    assert "3 published 2" in squeezed(applied("versions", "shop").stdout)
    assert "changed a front red -> pink" in squeezed(applied("diff", "shop", "--from", "1").stdout)
    assert "from version 2 to version 3" in applied("diff", "shop").stderr
    assert "a front v3" in squeezed(applied("ls", "shop").stdout)
    assert "there are more; --limit 10 shows them" in applied("ls", "shop", "--limit", "1").stderr
    assert "version 2 of shop is published" in applied("rollback", "shop").stderr
    assert "version 1 of shop is published" in applied("rollback", "shop", "--to", "1").stderr
    assert "No version before version 1 is kept" in applied("rollback", "shop", code=2).stderr
    assert "There is no version 9" in applied("publish", "shop", "9", code=4).stderr
    assert documents(applied("publish", "shop", "3", "--json"))[0]["published"] == 3
    page = squeezed(applied("show", "shop").stdout)
    assert "published version 3" in page and "kept 2 0 1" in page


def test_ctrl_c_leaves_the_run_going_and_cancel_ends_it(applied: Run, api: Api) -> None:
    command = [sys.executable, "-m", "services.cli", "catalogue", "run", "shop"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_interrupts,  # noqa: PLW1509  no lock of a thread is needed there
    ) as process:
        assert process.stderr is not None
        while "is queued" not in (line := process.stderr.readline()):
            assert line, "it ended"
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130
        said = squeezed(process.stderr.read())
    assert (
        "the run goes on; `presswork catalogue show shop` shows it, `presswork catalogue cancel shop` stops it" in said
    )
    [going] = documents(applied("cancel", "shop", "--json"))
    assert going["cancel_requested_at"] is not None
    cancelled(api)
    assert api.http.get("/v1/catalogues/shop/runs").json()["data"][0]["state"] == "cancelled"


def test_pictures_of_a_review_are_drawn_again_by_item_and_those_that_are_rejected(
    applied: Run, api: Api, tmp_path: Path
) -> None:
    (tmp_path / "shop.toml").write_text(TOML + '\n[catalogue.shop.publish]\nreview = "changed"\nrequire = 0\n')
    applied("apply", "shop.toml")
    with scheduler(api):
        applied("run", "shop")
        assert "No run of shop is under review." in applied("redraw", "shop", "a", code=2).output
        (tmp_path / "feed.csv").write_text("sku,colour\na,pink\nb,navy\nc,new\n")
        begun = json.loads(applied("run", "shop", "--no-wait", "--json").stdout)["id"]
        until(lambda: api.http.get(f"/v1/catalogues/shop/runs/{begun}").json()["state"] == "reviewing")
    assert "c has no changed picture" in applied("redraw", "shop", "a", "c", code=2).output
    assert "give --rejected" in applied("redraw", "shop", code=2).output
    assert "no changed picture is rejected" in applied("redraw", "shop", "--rejected").output
    job = json.loads(applied("redraw", "shop", "a", "--json").stdout)
    assert (job["counts"]["total"], job["priority"]) == (1, "high")
    rows = {one["item"]: one for one in api.http.get(f"/v1/catalogues/shop/runs/{begun}/changes").json()["data"]}
    assert (rows["a"]["image_job_id"], rows["a"]["image_index"], rows["a"]["redraws"]) == (job["id"], 0, 1)
    assert (rows["a"]["after"], rows["b"]["redraws"], rows["b"]["image_index"]) == (None, 0, rows["b"]["index"])
    asked = {"mark": "rejected", "indexes": [rows["b"]["image_index"]]}
    assert api.http.put(f"/v1/jobs/{rows['b']['image_job_id']}/marks", json=asked).status_code == 200
    busy = api.http.post(f"/v1/catalogues/shop/runs/{begun}/redraw", json={"indexes": [rows["a"]["index"]]})
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "being_drawn")
    assert "draws 1 picture again" in applied("redraw", "shop", "--rejected").output
    [row] = [
        one for one in api.http.get(f"/v1/catalogues/shop/runs/{begun}/changes").json()["data"] if one["item"] == "b"
    ]
    assert (row["redraws"], row["mark"]) == (1, None)


def test_the_last_upload_is_read_where_the_file_is_not(applied: Run, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path.cwd()
    monkeypatch.chdir("/")
    assert "the last upload is read" in applied("run", "shop", "--no-wait").stderr
    applied("cancel", "shop")
    cancelled(api)
    shown = applied("run", "shop", "--no-wait", "--from", str(folder)).stderr
    assert "feed.csv: as uploaded before" in shown and "has begun" in shown
    applied("cancel", "shop")
    cancelled(api)
    api.http.put("/v1/catalogues/fresh", json=cataloguing.DEFINITION)
    assert "source.file is shop.csv, and there is no shop.csv" in applied("plan", "fresh", code=2).stderr


def test_a_catalogue_is_deleted_with_a_word_of_what_goes(applied: Run, api: Api) -> None:
    asked = applied("rm", "shop", code=2)
    assert "deletes shop: 0 versions of up to 0 images" in asked.stderr
    assert documents(applied("rm", "shop", "--yes", "--json")) == [{"name": "shop", "deleted": True}]
    applied("show", "shop", code=4)
