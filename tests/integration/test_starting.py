"""What is said while a worker starts, however long that takes: by the API, by `doctor` and by `presswork up`."""

import socket
import threading
from pathlib import Path

import httpx
import pytest

from services.api.v1.schemas import Ready
from services.cli import doctor
from services.core.db.database import Database
from services.core.fleet import workers
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from services.local import announcing
from tests import factories
from tests.factories import TENANT
from tests.waiting import until
from tests.web import serving
from worker import activity


def starts(database: Database, doing: str, worker: str = "worker-a") -> None:
    with database.begin_system() as connection:
        workers.starts(connection, worker, host="host", pid=1, doing=doing)


def registers(database: Database, worker: str = "worker-a") -> None:
    factories.register(database)
    with database.begin_system() as connection:
        workers.register(connection, worker, host="host", pid=1, device="cpu", model="simulated",
                         revision=factories.REVISION, state="ready")  # fmt: skip


def starting(database: Database) -> list[str]:
    with database.begin_system() as connection:
        return workers.starting(connection)


def test_a_worker_says_what_it_does_until_it_is_ready(database, start):
    start(wait=False, PRESSWORK_SIMULATED_BATCH_MS="2000")
    until(lambda: starting(database) == ["rendering a test image"])
    with database.begin_system() as connection:
        assert not workers.seen(connection, socket.gethostname()), "its health check waits"
    until(lambda: not starting(database))


def test_the_innermost_activity_is_told_and_then_the_outer_one_again():
    with activity.doing("preparing"):
        with activity.doing("exporting"):
            assert activity.now() == "exporting"
        assert activity.now() == "preparing"
    assert activity.now() == ""


def test_a_submission_and_readiness_say_that_the_worker_is_starting(database, settings: Settings, store: S3Store):
    with database.begin_system() as connection:
        key = api_keys.issue_key(connection, settings.secret, TENANT, "test")
    with serving(settings) as url, httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http:

        def refused() -> str:
            answer = http.post("/v1/jobs", json={"images": [{"prompt": "a mug"}]})
            assert answer.status_code == 422
            return str(answer.json()["error"]["message"])

        assert refused() == "There is no model yet: no worker has been up."
        starts(database, "exporting the U-Net, 2 of 3")
        words = "a worker is starting (exporting the U-Net, 2 of 3); submit again when it is ready"
        assert refused() == f"There is no model yet: {words}."
        checks = until(lambda: ready.checks if "starting" in (ready := seen(url)).checks["worker"].message else None)
        assert checks["worker"].message == "A worker is starting: exporting the U-Net, 2 of 3."
        registers(database)
        assert starting(database) == []
        assert http.post("/v1/jobs", json={"images": [{"prompt": "a mug"}]}).status_code == 202


def seen(url: str) -> Ready:
    return Ready.model_validate(httpx.get(f"{url}/readyz").json())


def test_doctor_waits_for_a_worker_that_starts_and_finds_it_bad_that_there_is_none(database, environ, store, capsys,
                                                                                   monkeypatch):  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def found() -> dict[str, str]:
        assert doctor.run() in (0, 1)
        return {line[5:15].strip(): line[:4].strip() for line in capsys.readouterr().out.splitlines()}

    assert (found()["workers"], found()["model"]) == ("BAD", "BAD")
    starts(database, "loading the model")
    assert (found()["workers"], found()["model"]) == ("wait", "wait")
    registers(database)
    assert (found()["workers"], found()["model"]) == ("ok", "ok")


def test_up_says_every_activity_once_and_goes_on_until_the_server_is_ready(
    database, settings: Settings, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(announcing, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(announcing, "REMIND_SECONDS", 1.0)
    said: list[str] = []
    with serving(settings) as url:
        own = Database(settings.database_url, application="tests", pool_size=1)
        arguments = (url, tmp_path / "env", own, threading.Event(), said.append)
        thread = threading.Thread(target=announcing.announce, args=arguments, daemon=True)
        thread.start()
        until(lambda: said)
        starts(database, "exporting the U-Net, 2 of 3")
        until(lambda: "still exporting" in said[-1])
        starts(database, "rendering a test image")
        until(lambda: "rendering" in said[-1])
        registers(database)
        thread.join(20)
    first, *still, last, ready = [words for words in said if "not ready after" not in words]
    assert said[0].startswith("not ready after") and f"see {url}/readyz" in said[0]
    assert first == "the worker is starting: exporting the U-Net, 2 of 3"
    assert all(words.startswith("the worker is starting: still exporting the U-Net, 2 of 3, for ") for words in still)
    assert last == "the worker is starting: rendering a test image"
    assert ready.startswith(f"ready at {url} after ")
