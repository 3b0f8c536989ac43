"""A job that asks for a reproducibility class: who renders it, what is copied for it, and who says that nobody can."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.fleet import models, workers
from services.core.fleet.abilities import Abilities
from services.core.jobs import lanes, lifecycle, overview, resubmission, retry, shapes
from services.core.model import requests
from services.core.model.errors import InvalidSubmission
from services.core.model.states import ImageState
from services.core.policy import policies
from services.core.queue import looks
from tests import factories
from tests.factories import TENANT, submit
from tests.render_loops import counts, images, mugs
from tests.web import Api
from worker.pipeline import Picture
from worker.pipelines.simulated import SimulatedPipeline

HERE = "simulated-1/simulated/uint8/simulated/"
ELSEWHERE = "simulated-1/torch/fp16/NVIDIA H200/16"


def sized(database, job: int) -> set[str | None]:
    return {image.reproducibility_class for image in images(database, job)}


def test_an_image_is_rendered_in_the_class_that_was_asked_for_also_in_smaller_batches(make_render_loop, database, fast):
    loop = make_render_loop()
    jobs = {
        size: submit(database, fast, mugs(5), reproducibility_class=f"{HERE}{size}")
        for size in loop.pipeline.card.batch_sizes
    }
    usual = submit(database, fast, mugs(2))
    loop.run()
    for size, job in jobs.items():
        assert counts(database, job) == {"done": 5} and sized(database, job) == {f"{HERE}{size}"}
    assert sized(database, usual) == {f"{HERE}16"}


def test_what_nobody_here_serves_waits_and_is_in_nobodys_way(make_render_loop, database, fast):
    loop = make_render_loop()
    waits = [submit(database, fast, mugs(3), reproducibility_class=ELSEWHERE) for _ in range(20)]
    done = submit(database, fast, mugs(3))
    loop.run()
    assert counts(database, done) == {"done": 3}
    assert all(counts(database, job) == {"queued": 3} for job in waits)


def test_a_request_of_a_job_may_ask_for_a_class_of_its_own_and_retries_and_copies_keep_it(
    make_render_loop, database, fast
):
    loop = make_render_loop()
    rows = [*mugs(2, _1="fault:raise"), {"prompt": "any", "size": "64x64"}]
    rows[0]["reproducibility_class"] = rows[1]["reproducibility_class"] = f"{HERE}4"
    job = submit(database, fast, rows)
    loop.run()
    assert [image.reproducibility_class for image in images(database, job)] == [f"{HERE}4", None, f"{HERE}16"]
    with database.begin(TENANT) as connection:
        again = resubmission.page(connection, job, after=-1, limit=10)
        assert [one.request().get("reproducibility_class") for one in again] == [f"{HERE}4", f"{HERE}4", None]
        assert [one.shape.reproducibility_class for one in shapes.of_job(connection, job)] == [f"{HERE}4", ""]
    with database.begin_system() as connection:
        lifecycle.finish(connection)
    with database.begin(TENANT) as connection:
        child = retry.retry(connection, TENANT, job, requests.RetryOptions(), policy=policies.NOTHING).job_id
        assert [one.shape.reproducibility_class for one in shapes.of_job(connection, child)] == [f"{HERE}4"]


def test_a_copy_is_of_the_class_that_was_asked_for(make_render_loop, database, fast):
    loop = make_render_loop()
    first = submit(database, fast, mugs(2))
    loop.run()
    other = submit(database, fast, mugs(2), head={"dedupe": True}, reproducibility_class=f"{HERE}4")
    same = submit(database, fast, mugs(2), head={"dedupe": True}, reproducibility_class=f"{HERE}16")
    loop.run()
    assert sized(database, other) == {f"{HERE}4"} and sized(database, same) == sized(database, first) == {f"{HERE}16"}
    reused = {job: [image.reused for image in images(database, job)] for job in (other, same)}
    assert reused == {other: [False, False], same: [True, True]}


def test_a_class_whose_batches_do_not_fit_is_released_and_left_to_other_workers(make_render_loop, database, fast):
    """Without an attempt, and the worker renders other work meanwhile."""
    small = make_render_loop(fast, worker="small")
    row = {"prompt": "fault:oom>8", "size": "64x64"}
    job = submit(database, fast, [row], reproducibility_class=f"{HERE}16")
    eight = submit(database, fast, [row], reproducibility_class=f"{HERE}8")
    usual = submit(database, fast, [row])
    for _ in range(3):
        small.run()
    assert counts(database, job) == {"queued": 1} and counts(database, eight) == counts(database, usual) == {"done": 1}
    assert sized(database, usual) == {f"{HERE}8"}
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM failures")).scalar_one() == 0
        assert connection.execute(text("SELECT max(attempt) FROM images")).scalar_one() == 0
        rows = connection.execute(
            text("SELECT count(*) FROM claims JOIN images ON images.job_id = ANY(job_ids) WHERE job_id = :id"),
            {"id": job},
        )
        assert rows.scalar_one() == 1  # it did not try again and again
    assert small.device.abilities().refused()
    large = make_render_loop(replace(fast, simulated_faults=False), worker="large")
    large.run()
    assert counts(database, job) == {"done": 1} and sized(database, job) == {f"{HERE}16"}


def test_an_image_that_a_class_cannot_draw_fails_if_the_class_was_asked_for(make_render_loop, database, fast):
    """Its decoder was tried again in another precision, so it is of a class of its own."""

    class Narrow(SimulatedPipeline):
        def render(self, batch: Any, on_step: Any) -> Any:
            drawn = super().render(batch, on_step)
            return [
                replace(one, decoded_in="fp32") if isinstance(one, Picture) and "bright" in spec.prompt else one
                for one, spec in zip(drawn, batch.specs, strict=True)
            ]

    loop = make_render_loop(pipeline=Narrow)
    rows = mugs(3, _1="a bright mug")
    usual, asked = submit(database, fast, rows), submit(database, fast, rows, reproducibility_class=f"{HERE}16")
    loop.run()
    assert counts(database, usual) == {"done": 3} and counts(database, asked) == {"done": 2, "failed": 1}
    assert f"{HERE}16".replace("uint8", "uint8+fp32-decoder") in sized(database, usual)
    [failed] = images(database, asked, ImageState.FAILED)
    assert failed.error_code == "other_class" and "class" in (failed.error_message or "")


def test_over_http_a_class_is_checked_listed_and_said_to_be_served_by_nobody(api: Api, monkeypatch: pytest.MonkeyPatch):
    gpu = f"{factories.REVISION}/torch/fp16/NVIDIA H200/16"
    with api.database.begin_system() as connection:
        models.register(connection, factories.CARD, [gpu])
    assert gpu in api.http.get("/v1/models/simulated").json()["reproducibility_classes"]  # no worker of it is up
    [refused] = api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}], "reproducibility_class": "16"}).json()[
        "error"
    ]["errors"]
    assert refused["code"] == "invalid_value" and "reproducibility_class" in refused["param"]
    other = api.http.post("/v1/jobs", json={"images": [{"prompt": "a", "reproducibility_class": ELSEWHERE}]}).json()
    assert other["error"]["code"] == "unserved_class"
    job = api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}], "reproducibility_class": gpu}).json()
    warning, other = api.http.get(f"/v1/jobs/{job['id']}").json()["warnings"]
    assert gpu in warning and "no worker that is up renders in the class" in warning
    [lane] = api.http.get("/v1/lanes").json()["data"]
    assert lane["reproducibility_class"] == gpu and lane["devices"] == []
    with api.database.begin(TENANT) as connection:
        assert [issue.code for issue in overview.overview(connection, TENANT).issues if gpu in issue.message] == [
            "unserved"
        ]
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    told = CliRunner().invoke(app, ["show", job["id"]], env={"COLUMNS": "200"})
    assert told.exit_code == 0 and "no worker that is up renders in the class" in told.output
    with api.database.begin_system() as connection:
        workers.register(
            connection, "gpu", host="h", pid=1, device="cuda:0 NVIDIA H200", model="simulated", state="ready",
            revision=factories.REVISION, report=Abilities(sizes=("512x512",), classes={16: gpu}).as_report(),
        )  # fmt: skip
    assert api.http.get(f"/v1/jobs/{job['id']}").json()["warnings"] == [other]
    assert "may render images of this job in another class" in other  # the first worker says nothing of classes
    with api.database.begin_system() as connection:
        workers.beat(connection, "worker-a", "stopped")
    assert api.http.get(f"/v1/jobs/{job['id']}").json()["warnings"] == []
    assert api.http.get("/v1/lanes").json()["data"][0]["devices"] == [{"device": "NVIDIA H200", "workers": 1}]
    [seen] = [one for one in api.http.get("/v1/workers").json()["data"] if one["id"] == "gpu"]
    assert (seen["batch_sizes"], seen["reproducibility_classes"], seen["rates"]) == ([16], [gpu], [])


def test_the_command_asks_for_a_class(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    asked = f"{factories.REVISION}/torch/fp16/NVIDIA H200/16"
    (tmp_path / "p.jsonl").write_text('{"prompt": "a mug"}\n')
    sent = CliRunner().invoke(app, ["submit", str(tmp_path / "p.jsonl"), "--reproducibility-class", asked])
    assert sent.exit_code == 0, sent.output
    with api.database.begin_system() as connection:
        found = lanes.waiting(connection, TENANT, all_tenants=True)
        assert [lane.shape.reproducibility_class for lane in found.lanes] == [asked]
        assert not looks.candidates(connection, factories.REVISION, 1, "w").rows


def test_too_many_classes_in_one_job_are_refused_as_shapes(database, settings):
    factories.register(database)
    rows = [{"prompt": "a", "reproducibility_class": f"{factories.REVISION}/b/p/d/{size}"} for size in range(1, 66)]
    with pytest.raises(InvalidSubmission, match="64 shapes"):
        submit(database, settings, rows)
