"""The backlog: what a fleet is scaled by, in seconds of one accelerator."""

import dataclasses
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from services.core.fleet import throughput, workers
from services.core.jobs import backlog, lifecycle
from services.core.model.specs import Shape
from services.core.monitoring import installation
from services.core.queue import counters
from tests import factories
from tests.factories import TENANT, submit
from tests.web import Api

SMALL = Shape(factories.REVISION, 64, 64, 10, True)


@pytest.fixture
def ready(database):
    factories.register(database)
    with database.begin_system() as connection:
        throughput.record(connection, SMALL, "h cuda:0 H200", images=256, seconds_per_image=0.5)
    return database


def look(database, model: str = "simulated", *, default: float = 10.0, tenant: int | None = None) -> backlog.Backlog:
    with database.begin_system() as connection:
        counters.fold(connection)
        return backlog.backlog(connection, model, default, tenant_id=tenant)


def work(found: backlog.Backlog) -> tuple[int, int, float]:
    return found.queued, found.rendering, found.accelerator_seconds


def up(database, name: str, revision: str = factories.REVISION) -> None:
    with database.begin_system() as connection:
        workers.register(
            connection, name, host="h", pid=1, device="cuda:0 H200", model="m", revision=revision, state="ready"
        )


def test_it_is_what_waits_and_is_rendered_in_seconds_of_one_accelerator(ready, settings):
    assert work(look(ready)) == (0, 0, 0.0)
    submit(ready, settings, 40, size="64x64")
    assert work(look(ready)) == (40, 0, 20.0)
    up(ready, "worker-a")
    claim = factories.claim(ready, 16)
    assert work(look(ready)) == (24, 16, 20.0)  # what is rendered keeps its worker up
    factories.settle(ready, claim)
    assert work(look(ready)) == (24, 0, 12.0)
    while claim := factories.claim(ready, 16):
        assert look(ready).rendering == len(claim.images)
        factories.settle(ready, claim)
    assert work(look(ready)) == (0, 0, 0.0)


def test_a_shape_costs_what_was_measured_or_is_scaled_or_what_the_asker_says(database, settings):
    factories.register(database)
    submit(database, settings, 10, size="64x64")
    assert look(database, default=3.0).accelerator_seconds == 30.0
    with database.begin_system() as connection:
        throughput.record(connection, SMALL, "h cuda:0 H200", images=256, seconds_per_image=0.5)
    assert look(database, default=3.0).accelerator_seconds == 5.0
    submit(database, settings, 10, size="64x64", num_inference_steps=20)
    twice = dataclasses.replace(SMALL, steps=20).work / SMALL.work
    assert look(database).accelerator_seconds == pytest.approx(5.0 * (1 + twice))


def test_a_model_that_nobody_has_published_counts_as_one_image(database):
    assert look(database, "unknown", default=7.0) == backlog.Backlog(0, 0, 7.0, registered=False)


def test_what_no_worker_may_claim_keeps_none_up(ready, settings):
    with ready.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
    paused = submit(ready, settings, 10, size="64x64")
    submit(ready, settings, 4, size="64x64", tenant=2)
    assert look(ready).queued == 14
    with ready.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, paused=True)
    assert work(look(ready)) == (4, 0, 2.0)
    for quota in ("state = 'suspended'", "state = 'active', max_device_seconds_per_day = 0"):
        with ready.begin_system() as connection:
            connection.execute(text(f"UPDATE tenants SET {quota} WHERE id = 2"))
        assert work(look(ready)) == (0, 0, 0.0), quota


def test_another_models_work_in_the_same_job_is_not_counted(ready, settings):
    other = dataclasses.replace(factories.CARD, name="other", revision="other-1")
    factories.register(ready, other)
    submit(ready, settings, [{"prompt": "a", "model": name, "n": 8} for name in ("simulated", "other")], size="64x64")
    up(ready, "worker-b", "other-1")
    assert (look(ready).queued, look(ready, "other").queued) == (8, 8)
    while claim := factories.claim(ready, 4, worker="worker-b", revision="other-1"):
        held = look(ready), look(ready, "other")
        assert (held[0].rendering, held[1].rendering) == (0, 4)
        factories.settle(ready, claim)
    # Exactly nothing: the rest of the job would keep a worker of the other model up.
    assert work(look(ready, "other")) == (0, 0, 0.0)
    assert look(ready).queued == 8


def test_the_leading_scheduler_tells_the_same(ready, settings):
    """Whoever scales by presswork_backlog_seconds scales as the chart does."""

    def both(model: str) -> tuple[float, float]:
        with ready.begin_system() as connection:
            counters.fold(connection)
            shown = installation.read(connection)["presswork_backlog_seconds"][model,]
            return shown, backlog.backlog(connection, model, installation.ASSUMED_SECONDS).accelerator_seconds

    factories.register(ready, dataclasses.replace(factories.CARD, name="other", revision="other-1"))
    with ready.begin_system() as connection:
        throughput.record(
            connection, dataclasses.replace(SMALL, width=512, height=512), "h", images=4, seconds_per_image=8
        )
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'away')"))
    sizes = [{"prompt": "a", "size": size, "n": 6} for size in ("64x64", "512x512")]
    submit(ready, settings, sizes)
    submit(ready, settings, 5, model="other")
    submit(ready, settings, 7, size="64x64", tenant=2)
    paused = submit(ready, settings, 9, size="64x64")
    with ready.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, paused=True)
    with ready.begin_system() as connection:
        connection.execute(text("UPDATE tenants SET state = 'suspended' WHERE id = 2"))
    assert both("simulated") == (6 * 0.5 + 6 * 8, 6 * 0.5 + 6 * 8)
    assert both("other") == (5 * installation.ASSUMED_SECONDS, 5 * installation.ASSUMED_SECONDS)
    last = (0.0, 0.0)
    while claim := factories.claim(ready, 4):
        last = both("simulated")
        assert last[0] == pytest.approx(last[1])
        large = [len(claim.images)] if claim.shape.width == 512 else []
        factories.settle(ready, claim)
    # Of the last claim's job, the first images were small ones.
    assert large and last == (large[0] * 8, large[0] * 8)
    assert both("simulated") == (0, 0)


def ask(api: Api, key: str, **params: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{api.url}/v1/fleet/backlog", params=params, headers=headers, trust_env=False, timeout=30)


def test_over_http_the_operator_sees_all_of_it_and_others_their_own(emptied: Api):
    emptied.submit({"prompt": "a mug", "n": 3})
    _, stranger = emptied.new_tenant("other")
    mine = ask(emptied, emptied.key, model="simulated", seconds_per_image=2).json()
    assert mine == {
        "object": "backlog", "model": "simulated", "registered": True,
        "queued": 3, "rendering": 0, "accelerator_seconds": 6.0,
    }  # fmt: skip
    assert ask(emptied, stranger, model="simulated").json()["accelerator_seconds"] == 0
    with httpx.Client(base_url=emptied.url, headers={"Authorization": f"Bearer {stranger}"}, trust_env=False) as http:
        http.post("/v1/jobs", json={"images": [{"prompt": "a jug", "n": 2}]}).raise_for_status()
    assert ask(emptied, stranger, model="simulated").json()["queued"] == 2
    assert ask(emptied, emptied.key, model="simulated").json()["queued"] == 5


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({}, "model"),
        ({"model": ""}, "model"),
        ({"model": "a", "seconds_per_image": "0"}, "seconds_per_image"),
        ({"model": "a", "seconds_per_image": "nan"}, "seconds_per_image"),
    ],
)
def test_what_it_does_not_understand_is_refused(served: Api, params: dict[str, str], param: str):
    answer = ask(served, served.key, **params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
