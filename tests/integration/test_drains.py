"""Draining: a worker finishes what it holds and takes nothing new, until it is resumed."""

from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.db.database import Database
from services.core.events import numbering
from services.core.fleet import drains, workers
from services.core.model.scopes import Scope
from services.core.queue import settlement
from tests import factories
from tests.factories import TENANT
from tests.render_loops import RenderLoopMaker, counts, mugs
from tests.web import Api


def up(
    database: Database, worker: str, *, host: str = "host", device: str = "cpu", revision: str = factories.REVISION
) -> None:
    with database.begin_system() as connection:
        workers.register(
            connection, worker, host=host, pid=7, device=device, model="simulated", revision=revision, state="ready"
        )


def drain(database: Database, worker: str) -> None:
    with database.begin_system() as connection:
        drains.drain(connection, worker, TENANT)


def resume(database: Database, worker: str) -> None:
    with database.begin_system() as connection:
        drains.resume(connection, worker, TENANT)


def test_a_drained_worker_claims_nothing_also_when_it_is_started_again_and_others_go_on(
    database: Database, settings: Any
) -> None:
    factories.register(database)
    for worker, device in (("worker-a", "cpu"), ("worker-b", "cuda:0")):
        up(database, worker, device=device)
    factories.submit(database, settings, 8)
    held = factories.claim(database, 2, worker="worker-a")
    assert held is not None
    drain(database, "worker-a")
    assert factories.claim(database, 2, worker="worker-a") is None
    assert factories.settle(database, held).verdict is settlement.Verdict.OK  # what it holds, it finishes
    up(database, "worker-a2")  # another process for the same device
    assert factories.claim(database, 2, worker="worker-a2") is None
    assert factories.claim(database, 2, worker="worker-b") is not None
    resume(database, "worker-a2")
    assert factories.claim(database, 2, worker="worker-a") is not None


def test_a_render_loop_that_is_drained_renders_nothing_until_it_is_resumed(
    make_render_loop: RenderLoopMaker, database: Database, fast: Any
) -> None:
    render_loop = make_render_loop()
    up(database, "worker-1", host="worker-1", revision=render_loop.pipeline.card.revision)
    job_id = factories.submit(database, fast, mugs(3))
    drain(database, "worker-1")
    render_loop.run()
    assert counts(database, job_id) == {"queued": 3}
    resume(database, "worker-1")
    render_loop.run()
    assert counts(database, job_id).get("done") == 3


def actions(api: Api) -> list[dict[str, Any]]:
    with api.database.begin_system() as connection:
        numbering.number(connection)
    found: list[dict[str, Any]] = api.http.get("/v1/actions").json()["data"]
    return [one for one in found if one["verb"].startswith("worker.")]


def test_over_http_a_worker_is_drained_shown_so_and_resumed(api: Api) -> None:
    def shown() -> bool:
        [worker] = api.http.get("/v1/workers").json()["data"]
        assert (worker["id"], worker["host"], worker["device"], worker["state"]) == ("worker-a", "host", "cpu", "ready")
        return bool(worker["drained"])

    def serving() -> int:
        estimate = api.http.post("/v1/jobs/estimate", json={"shapes": [{"images": 1}]}).json()
        return int(estimate["workers"])

    assert (shown(), serving()) == (False, 1)
    for _ in range(2):  # repeating it is not an error, and not another event
        answer = api.http.post("/v1/workers/worker-a/drain")
        assert (answer.status_code, answer.json()["drained"]) == (200, True)
    assert (shown(), serving()) == (True, 0)
    for _ in range(2):
        assert api.http.post("/v1/workers/worker-a/resume").json()["drained"] is False
    assert (shown(), serving()) == (False, 1)
    assert [(one["verb"], one["actor_name"], one["subject_type"], one["subject"]) for one in actions(api)] == [
        ("worker.resumed", "test", "device", "host cpu"),
        ("worker.drained", "test", "device", "host cpu"),
    ]
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '6 minutes'"))
    for name in ("worker-a", "nothing"):
        for verb in ("drain", "resume"):
            answer = api.http.post(f"/v1/workers/{name}/{verb}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert name in answer.json()["error"]["message"]


def test_hosts_of_drained_devices_are_for_those_who_may_operate(api: Api) -> None:
    drain(api.database, "worker-a")
    assert [one["subject"] for one in actions(api)] == ["host cpu"]
    api.http.headers["Authorization"] = f"Bearer {api.new_key(Scope.VIEW)}"
    assert [one["subject"] for one in actions(api)] == ["cpu"]


def test_the_command_drains_a_host_and_resumes_a_worker(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    up(api.database, "worker-b", device="cuda:0")
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["workers", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    def drained() -> dict[str, bool]:
        return {one["id"]: one["drained"] for one in api.http.get("/v1/workers").json()["data"]}

    assert "worker-b" in run("drain", "host")
    assert drained() == {"worker-a": True, "worker-b": True}
    assert "drained" in run("list")
    run("resume", "worker-b")
    assert drained() == {"worker-a": True, "worker-b": False}
    assert "'elsewhere'" in run("drain", "elsewhere", code=2)
