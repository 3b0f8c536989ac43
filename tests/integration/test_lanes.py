"""Lanes: what waits, by shape, priority and tenant, and who can serve it."""

import dataclasses
import json

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.fleet import throughput, workers
from services.core.jobs import lanes, lifecycle
from services.core.model.scopes import Scope
from services.core.model.specs import Shape
from services.core.queue import counters, job_states
from services.core.tenants import api_keys
from tests import factories
from tests.factories import TENANT, submit
from tests.integration.test_overview import rows_read
from tests.web import Api

SMALL = Shape(factories.REVISION, 64, 64, 10, True)
ROWS_A_JOB = 6


@pytest.fixture
def ready(database):
    factories.register(database)
    return database


def look(database, tenant=TENANT, **how):
    with database.begin_system() as connection:
        return lanes.waiting(connection, tenant, **{"all_tenants": False, **how})


def seen(found):
    return [
        (f"{lane.shape.width}/{lane.shape.steps}", lane.priority, lane.images, lane.exact, lane.jobs)
        for lane in found.lanes
    ]


def up(database, name, *, device="cuda:0 H200", revision=factories.REVISION, state="ready"):
    with database.begin_system() as connection:
        workers.register(connection, name, host="h", pid=1, device=device, model="m", revision=revision, state=state)


def test_what_waits_is_counted_by_shape_and_priority_the_oldest_first(ready, settings):
    assert look(ready).lanes == ()
    old = submit(ready, settings, 5, size="64x64")
    submit(ready, settings, 3, size="64x64")
    submit(ready, settings, 2, size="64x64", num_inference_steps=20)
    submit(ready, settings, 4, size="64x64", priority="high")
    paused = submit(ready, settings, 9, size="64x64", priority="low")
    with ready.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET opened_at = now() - interval '1 hour' WHERE id = :id"), {"id": old})
    with ready.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, paused=True)
    found = look(ready)
    assert seen(found) == [("64/10", 0, 4, True, 1), ("64/10", 1, 8, True, 2), ("64/20", 1, 2, True, 1)]
    assert [round(lane.oldest_seconds / 3600) for lane in found.lanes] == [0, 1, 0]
    claim = factories.claim(ready, 3)  # in its turn, of normal priority
    assert claim is not None
    with ready.begin_system() as connection:
        job_states.start(connection, claim.fresh_jobs)
    assert [lane.images for lane in look(ready).lanes] == [4, 5, 2]
    assert not found.more


def test_one_image_of_each_model_and_priority_is_a_lane(ready, settings):
    """The first and the last model, and a segment of one image, count as all others do."""
    names = [f"model-{letter}" for letter in "abc"]
    for name in names:
        factories.register(ready, dataclasses.replace(factories.CARD, name=name, revision=f"{name}-1"))
        for priority in ("low", "high"):
            submit(ready, settings, 1, size="64x64", priority=priority, model=name)
    found = look(ready)
    assert [(lane.model, lane.priority, lane.images) for lane in found.lanes] == [
        (name, priority, 1) for priority in (0, 2) for name in names
    ]
    assert [lane.shape.model_revision for lane in found.lanes[:3]] == [f"{name}-1" for name in names]
    assert all(lane.oldest_seconds >= 0 and lane.exact for lane in found.lanes)


def test_the_oldest_jobs_are_looked_at_and_ones_own_tenant_before_others(ready, settings, monkeypatch):
    others = [2, 3]
    with ready.begin_system() as connection:
        for tenant in others:
            connection.execute(text("INSERT INTO tenants (id, name) VALUES (:id, :name)"),
                               {"id": tenant, "name": f"tenant {tenant}"})  # fmt: skip
    for tenant in (TENANT, *others):
        for images in (1, 2, 4):
            submit(ready, settings, images, size="64x64", tenant=tenant)
    monkeypatch.setattr(lanes, "_OF_EACH", 2)
    found = look(ready, 2, all_tenants=True)
    assert sorted((lane.tenant, lane.images) for lane in found.lanes) == [
        ("default", 3), ("tenant 2", 3), ("tenant 3", 3),
    ]  # fmt: skip
    assert found.more
    monkeypatch.setattr(lanes, "MOST", 4)
    found = look(ready, 2, all_tenants=True)
    assert sorted((lane.tenant, lane.images) for lane in found.lanes) == [("default", 3), ("tenant 2", 3)]
    assert found.more
    assert [(lane.tenant, lane.images) for lane in look(ready, 3).lanes] == [("tenant 3", 3)]


def test_what_a_claim_would_not_take_is_in_no_lane(ready, settings):
    """Whatever its segments say."""
    for change in ("paused = true", "state = 'cancelling', cancel_requested_at = now()"):
        job = submit(ready, settings, 2, size="64x64")
        with ready.begin_system() as connection:
            connection.execute(text(f"UPDATE jobs SET {change} WHERE id = :id"), {"id": job})
        assert factories.claim(ready, 16) is None
        assert look(ready).lanes == ()


def test_a_job_that_mixes_shapes_is_divided_in_proportion_once_it_has_begun(ready, settings):
    images = [{"prompt": "a", "size": "64x64", "n": 6}, {"prompt": "b", "size": "256x256", "n": 2}]
    submit(ready, settings, images)
    assert seen(look(ready)) == [("64/10", 1, 6, True, 1), ("256/10", 1, 2, True, 1)]  # nothing has begun
    assert factories.claim(ready, 4) is not None
    assert [lane.exact for lane in look(ready).lanes] == [False, False]
    assert sum(lane.images for lane in look(ready).lanes) == 4


def test_a_lane_says_who_serves_it_and_how_long_it_takes(ready, settings):
    submit(ready, settings, 10, size="64x64")
    [lane] = look(ready).lanes
    assert (lane.devices, lane.device_seconds, lane.seconds) == ({}, None, None)
    for name, device in (("a", "cuda:0 H200"), ("b", "cuda:1 H200"), ("c", "cpu")):
        up(ready, name, device=device)
    up(ready, "sick", state="sick")
    up(ready, "other", revision="another")
    with ready.begin_system() as connection:
        throughput.record(connection, SMALL, "h cpu", images=16, seconds_per_image=0.6)
        connection.execute(text("INSERT INTO drains (host, device) VALUES ('h', 'cpu')"))
    [lane] = look(ready).lanes
    assert lane.devices == {"H200": 2}
    assert (lane.device_seconds, lane.seconds) == (pytest.approx(6.0), pytest.approx(3.0))
    with ready.begin_system() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 minute'"))
    assert look(ready).lanes[0].seconds is None


def test_counts_are_exact_and_a_large_job_costs_as_much_as_a_small_one(ready, settings):
    job_id = submit(ready, settings, [{"prompt": "a mug", "n": 1000}] * 30, size="64x64")
    claim = factories.claim(ready, 16)
    assert claim is not None and claim.images[0].job_id == job_id
    factories.settle(ready, claim)
    with ready.begin_system() as connection:
        counters.fold(connection)
    for _ in range(lanes._OF_EACH - 1):
        submit(ready, settings, 1)
    with ready.begin_system() as connection, rows_read(connection) as read:
        found = lanes.waiting(connection, TENANT, all_tenants=False)
    assert [lane.images for lane in found.lanes] == [30_000 - 16, lanes._OF_EACH - 1]
    assert found.more  # one more would not have been looked at
    assert len(read) <= 5
    assert max(read.values()) <= ROWS_A_JOB * lanes._OF_EACH, read


def test_a_tenant_sees_its_own_and_a_key_with_the_scope_admin_all(api: Api, monkeypatch: pytest.MonkeyPatch):
    api.submit({"prompt": "ours", "n": 3, "size": "64x64"})
    tenant, key = api.new_tenant("guests", operator=True)
    with api.database.begin_system() as connection:
        view = api_keys.issue_key(connection, api.settings.secret, tenant, "view", given=(Scope.VIEW,))

    def shown(key: str) -> list[tuple[str, int]]:
        answer = api.http.get("/v1/lanes", headers={"Authorization": f"Bearer {key}"}).json()
        return [(lane["tenant"], lane["images"]) for lane in answer["data"]]

    assert shown(view) == []
    api.http.post(
        "/v1/jobs", json={"images": [{"prompt": "theirs", "size": "64x64"}]}, headers={"Authorization": f"Bearer {key}"}
    )
    assert shown(view) == [("guests", 1)]
    assert sorted(images for _, images in shown(key)) == [1, 3]
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", view)
    told = CliRunner().invoke(app, ["lanes"], env={"COLUMNS": "200"})
    assert told.exit_code == 0 and "64x64" in told.output and "1 x cpu" in told.output
    [lane] = [json.loads(line) for line in CliRunner().invoke(app, ["lanes", "--json"]).output.splitlines()]
    assert lane["priority"] == "normal" and lane["devices"] == [{"device": "cpu", "workers": 1}]
