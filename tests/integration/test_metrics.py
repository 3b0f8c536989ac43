"""What programs tell of themselves, and the leading scheduler of the installation: by real programs on real servers."""

import dataclasses
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from scheduler.figures import Installation
from services.core.db.database import Database
from services.core.fleet import throughput
from services.core.jobs import backlog, estimates, lanes
from services.core.metrics import definitions, endpoint, registry
from services.core.metrics.bounded import LONGEST, Bounded
from services.core.model.errors import SettingsError
from services.core.model.specs import ModelCard
from services.core.monitoring import installation
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests import factories
from tests.processes import Process
from tests.waiting import until
from tests.web import Api
from worker import exposing

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def scrape(port: int) -> Samples:
    """Samples by name and sorted labels; none while nobody answers."""
    try:
        shown = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    except httpx.TransportError:
        return {}
    found: Samples = {}
    for family in text_string_to_metric_families(shown):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get(name, {}).get(tuple(sorted(labels.items())), 0.0)


@pytest.fixture
def scheduler(environ: dict[str, str], store: S3Store, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    running: list[Process] = []

    def start(**extra: str) -> Process:
        process = Process("scheduler.app", {**environ, **extra}, tmp_path / f"scheduler-{len(running)}.log")
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()


def test_a_worker_tells_what_it_did_and_its_next_child_goes_on_counting(
    start: Callable[..., Process], database: Database, settings: Settings, tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "temporary"
    folder.mkdir()
    worker = start(PRESSWORK_METRICS_PORT=str(port), TMPDIR=str(folder))
    factories.submit(database, settings, [{"prompt": prompt} for prompt in ("a", "b", "fault:raise")])
    until(lambda: value(scrape(port), "presswork_worker_failures_total", model="simulated", cause="render_error") == 1)
    found = scrape(port)
    images = {outcome: value(found, "presswork_worker_images_total", model="simulated", outcome=outcome)
              for outcome in ("done", "failed", "reused")}  # fmt: skip
    assert images == {"done": 2, "failed": 1, "reused": 0}
    assert value(found, "presswork_worker_up", model="simulated") == 1
    assert value(found, "presswork_worker_busy_seconds_total", model="simulated") > 0
    assert value(found, "presswork_worker_store_seconds_count", model="simulated") == 2
    slots = value(found, "presswork_worker_batch_slots_total", model="simulated")
    assert 0 < value(found, "presswork_worker_batch_images_total", model="simulated") < slots
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    until(lambda: value(scrape(port), "presswork_worker_child_deaths_total", model="simulated", state="ready") == 1)
    factories.submit(database, settings, [{"prompt": "c"}])
    until(lambda: value(scrape(port), "presswork_worker_images_total", model="simulated", outcome="done") == 3)
    assert {file.name for file in folder.glob("presswork-metrics-*/*")} == {
        "counter_child.db", "gauge_mostrecent_child.db", "histogram_child.db",
    }  # fmt: skip
    assert worker.stop() == 0
    assert not [*folder.glob("presswork-metrics-*")]


def _locked(folder: Path) -> bool:
    try:
        os.close(exposing._lock(folder))
    except OSError:
        return True
    return False


def test_the_leader_alone_tells_of_the_installation(
    scheduler: Callable[..., Process], database: Database, settings: Settings
) -> None:
    ports = [free_port(), free_port()]
    factories.register(database)
    factories.submit(database, settings, [{"prompt": "a", "n": 30}])
    first = scheduler(PRESSWORK_METRICS_PORT=str(ports[0]))
    until(lambda: value(scrape(ports[0]), "presswork_scheduler_leads") == 1)
    scheduler(PRESSWORK_METRICS_PORT=str(ports[1]))
    other = until(lambda: scrape(ports[1]))
    assert value(other, "presswork_scheduler_leads") == 0 and "presswork_queue_images" not in other
    found = scrape(ports[0])
    assert value(found, "presswork_queue_unserved_images", model="simulated") == 30
    assert sum(found["presswork_queue_images"].values()) == 30
    assert value(found, "presswork_backlog_seconds", model="simulated") == 30 * installation.ASSUMED_SECONDS
    assert value(found, "presswork_background_tasks_waiting", task="export") == 0
    assert value(found, "presswork_periodic_task_failures_total", task="fold") == 0
    assert value(found, "presswork_queue_read_failures_total") == 0
    first.kill()
    until(lambda: "presswork_queue_images" in scrape(ports[1]))


def test_the_installation_counts_what_waits_and_what_is_rendered(database: Database, settings: Settings) -> None:
    factories.register(database)
    factories.submit(database, settings, [{"prompt": "a", "n": 5, "size": "512x512"}], priority="high")
    factories.submit(database, settings, [{"prompt": "b", "n": 7, "size": "512x512"}], priority="low")
    assert factories.claim(database, seats=3) is not None
    with database.begin_system() as connection:
        found = installation.read(connection)
    queued = {labels[1]: count for labels, count in found["presswork_queue_images"].items()}
    assert queued == {"high": 2, "low": 7}
    assert found["presswork_rendering_images"] == {("simulated",): 3}
    assert found["presswork_backlog_seconds"] == {("simulated",): 12 * installation.ASSUMED_SECONDS}
    assert found["presswork_schema_behind"] == {(): 0}


def test_what_no_worker_may_claim_is_no_backlog(api: Api) -> None:
    tenant, key = api.new_tenant("suspended-later")
    asked = {"images": [{"prompt": "a", "n": 5}]}
    assert httpx.post(f"{api.url}/v1/jobs", json=asked, headers={"Authorization": f"Bearer {key}"}).status_code == 202
    paused = api.submit({"prompt": "a", "n": 3})
    api.http.post(f"/v1/jobs/{paused['id']}/pause").raise_for_status()
    api.submit({"prompt": "a", "n": 2})
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE tenants SET state = 'suspended' WHERE id = :id"), {"id": tenant})
        found = installation.read(connection)
    assert found["presswork_backlog_seconds"] == {("simulated",): 2 * installation.ASSUMED_SECONDS}
    assert sum(found["presswork_queue_images"].values()) == 2
    assert found["presswork_queue_held_images"] == {("simulated",): 5}
    with api.database.begin_system() as connection:
        change = "UPDATE tenants SET state = 'active', max_device_seconds_per_day = 0 WHERE id = :id"
        connection.execute(text(change), {"id": tenant})
        assert installation.read(connection)["presswork_queue_held_images"] == {("simulated",): 5}


def test_the_installation_tells_of_retention_audits_and_deletions(database: Database, settings: Settings) -> None:
    factories.register(database)
    job_id = factories.submit(database, settings, 1)
    with database.begin_system() as connection:
        found = installation.read(connection)
        assert set(found["presswork_retention_waiting"].values()) == {0}
        assert found["presswork_storage_audit_images"] == found["presswork_storage_audit_age_seconds"] == {}
        assert found["presswork_storage_restore_unaccepted"] == found["presswork_tenants_being_deleted"] == {(): 0}
        for made in (
            f"retention_work (job_id, tenant_id, kind) VALUES ({job_id}, 1, 'payloads')",
            f"""retention_work (job_id, tenant_id, kind, look_again_at)
                VALUES ({job_id}, 1, 'objects', now() + interval '1 minute')""",
            """storage_audits (requested_by, share, missing, finished_at)
               VALUES ('a', 1, 7, now() - interval '1 hour'), ('a', 1, 9, NULL)""",
            "tenant_deletions (tenant_id, name, requested_by) VALUES (7, 'gone', 'a')",
        ):
            connection.execute(text(f"INSERT INTO {made}"))
        connection.execute(text("UPDATE storage_mark SET refusal = 'the marks differ'"))
        found = installation.read(connection)
    waiting = {place: number for place, number in found["presswork_retention_waiting"].items() if number}
    assert waiting == {("payloads", "due"): 1, ("objects", "held"): 1}
    assert found["presswork_storage_audit_images"]["missing",] == 7
    assert 3_590 < found["presswork_storage_audit_age_seconds"][()] < 3_700
    assert found["presswork_storage_restore_unaccepted"] == found["presswork_tenants_being_deleted"] == {(): 1}


def test_a_model_without_work_has_a_backlog_of_zero(database: Database) -> None:
    factories.register(database)
    with database.begin_system() as connection:
        found = installation.read(connection)
    assert found["presswork_backlog_seconds"] == found["presswork_queue_unserved_images"] == {("simulated",): 0}
    assert found["presswork_queue_images"] == {}


def test_the_port_can_be_taken_again_right_after_it_was_read(settings: Settings) -> None:
    asked = dataclasses.replace(settings, metrics_port=free_port())
    for _ in range(2):
        shown = endpoint.listen(asked, registry.REGISTRY)
        shown.start()
        assert scrape(asked.metrics_port)
        shown.shutdown()
        shown.server_close()


def test_seconds_are_those_that_workers_measured(database: Database, settings: Settings) -> None:
    factories.register(database)
    factories.submit(database, settings, [{"prompt": "a", "n": 10}])
    claim = factories.claim(database, seats=4)
    assert claim is not None
    with database.begin_system() as connection:
        throughput.record(connection, claim.shape, "host cpu", images=4, seconds_per_image=2.5)
        found = installation.read(connection)
    assert sum(found["presswork_queue_seconds"].values()) == pytest.approx(6 * 2.5)
    assert found["presswork_backlog_seconds"] == {("simulated",): pytest.approx(10 * 2.5)}
    assert found["presswork_queue_unmeasured_images"] == {("simulated",): 0}


def test_series_are_bounded_whatever_models_are_called_and_however_many_tenants_and_lanes_there_are(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "MODELS", 3)
    monkeypatch.setattr(installation, "LANES", 4)
    hostile = ['a"} 1\nevil{x="', "long" * 30, "\u2028line", "{{label}}", "back\\slash"]
    for number, name in enumerate(hostile):
        card = factories.CARD
        factories.register(api.database, _named(card, name, f"{number}" * 64))
    for number in range(6):
        _, key = api.new_tenant(f"tenant-{number}")
        for model in hostile:
            asked = {"images": [{"prompt": "a", "model": model, "size": size} for size in ("64x64", "256x256")]}
            made = httpx.post(f"{api.url}/v1/jobs", json=asked, headers={"Authorization": f"Bearer {key}"})
            assert made.status_code == 202, made.text
    with api.database.begin_system() as connection:
        found = installation.read(connection)
    assert sum(found["presswork_queue_images"].values()) == 6 * 5 * 2
    models = {labels[0] for labels in found["presswork_backlog_seconds"]}
    assert len(models) == 4 and definitions.OTHER in models and all(len(name) <= LONGEST for name in models)
    lanes = [labels for labels in found["presswork_queue_images"] if labels[2] != definitions.OTHER]
    assert len(lanes) <= 4
    leader = CollectorRegistry()
    leader.register(Installation(lambda: True, api.database, []))
    shown = generate_latest(leader).decode()
    read = {family.name for family in text_string_to_metric_families(shown)}
    assert read == {*found, "presswork_background_tasks_waiting"} and "tenant-" not in shown


def _named(card: ModelCard, name: str, revision: str) -> ModelCard:
    return dataclasses.replace(card, name=name, revision=revision)


def test_a_look_beyond_its_limit_takes_the_rest_to_be_alike(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "SEGMENTS", 4)
    factories.register(database)
    for _ in range(10):
        factories.submit(database, settings, [{"prompt": "a", "n": 3}])
    with database.begin_system() as connection:
        connection.execute(text("UPDATE tenant_usage SET images_queued = 30"))
        found = installation.read(connection)
    assert sum(found["presswork_queue_images"].values()) == pytest.approx(30)
    assert found["presswork_queue_looked_at_ratio"] == {(): pytest.approx(0.4)}


def test_what_comes_from_outside_fills_no_more_than_its_share_of_a_label() -> None:
    label = Bounded(3)
    assert [label(name) for name in ("a", "b", "c", "d", "a")] == ["a", "b", "c", "other", "a"]
    assert len(Bounded(1)("x" * 1000)) == LONGEST


def test_a_web_server_counts_by_the_template_of_a_route(api: Api) -> None:
    def counted() -> list[float]:
        places = (("/v1/jobs/{job_id}", "GET", "2xx"), ("none", "GET", "4xx"), ("none", "other", "4xx"))
        shown = scrape(port)
        return [
            value(shown, "presswork_http_requests_total", route=route, method=method, status=status)
            for route, method, status in places
        ]

    port = int(httpx.URL(api.url).port or 0)
    job = api.submit({"prompt": "a"})
    before = counted()
    api.http.get(f"/v1/jobs/{job['id']}")
    for number in range(5):
        api.http.get(f"/v1/nothing-{number}")
        api.http.request(f"BREW{number}", "/v1/nothing")
    assert [after - one for after, one in zip(counted(), before, strict=True)] == [1, 5, 5]
    shown = scrape(port)
    assert value(shown, "presswork_http_request_seconds_count", route="/v1/jobs/{job_id}", method="GET") >= 1
    assert "presswork_queue_images" not in shown


def test_a_port_that_is_taken_is_said_in_one_sentence(
    start: Callable[..., Process], scheduler: Callable[..., Process]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for program in (start(wait=False, PRESSWORK_METRICS_PORT=port), scheduler(PRESSWORK_METRICS_PORT=port)):
            assert program.popen.wait(30) == 2
            said = program.text()
            assert "PRESSWORK_METRICS_PORT" in said and "in use" in said and "Traceback" not in said


def test_slow_readers_keep_nobody_else_from_the_metrics(settings: Settings) -> None:
    shown = endpoint.listen(dataclasses.replace(settings, metrics_port=free_port()), registry.REGISTRY)
    shown.start()
    place = ("127.0.0.1", shown.server_port)
    slow = [socket.create_connection(place) for _ in range(endpoint.AT_ONCE + 4)]
    until(lambda: sum(map(_is_closed, slow)) == 4, seconds=endpoint.PATIENCE_SECONDS / 2)  # at once, beyond the limit
    began = time.monotonic()
    until(lambda: scrape(shown.server_port))
    assert time.monotonic() - began < 4 * endpoint.PATIENCE_SECONDS
    for one in slow:
        one.close()
    shown.shutdown()
    shown.server_close()


def _is_closed(one: socket.socket) -> bool:
    one.settimeout(0.05)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False


def test_an_address_that_is_not_this_machines_is_refused(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="PRESSWORK_METRICS_HOST"):
        endpoint.listen(dataclasses.replace(settings, metrics_port=9, metrics_host="192.0.2.1"), registry.REGISTRY)


def test_folders_of_workers_that_were_killed_are_removed_and_those_of_living_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "presswork-metrics-killed"
    left.mkdir()
    (left / "counter_child.db").write_bytes(b"x")
    (tmp_path / "presswork-metrics-link").symlink_to(tmp_path.parent)
    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(lambda _: exposing._make_folder(), range(40))]
    assert not left.exists() and tmp_path.parent.exists()
    assert len(set(made)) == 40 and all(folder.is_dir() and _locked(folder) for folder in made)


LOOKS = {
    "lanes": (
        lanes._WAITING,
        {"tenant_id": 0, "is_all": True, "most": installation.SEGMENTS, "of_each": installation.SEGMENTS},
    ),
    "backlog": (backlog._WORK, {"tenant_id": None, "revision": factories.REVISION}),
    "what comes before a job": (estimates._AHEAD, {"revisions": [factories.REVISION], "priority": 2}),
}
TENANTS, SHAPES = 5_000, 8  # each tenant has a job of as many shapes


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("analyzed", [False, True], ids=["new to the planner", "known to the planner"])
def test_a_look_reads_a_jobs_segments_by_its_id_and_once_or_twice_however_many_wait(
    look: str, analyzed: bool, database: Database, settings: Settings, stack: Stack
) -> None:
    factories.register(database)
    job = factories.submit(database, settings, [{"prompt": "a", "n": 3}])
    changed = {
        "jobs": {"id": "one.id + n", "tenant_id": "n"},
        "counters": {"job_id": "one.job_id + n"},
        "segments": {"job_id": "one.job_id + n", "tenant_id": "n", "id": "one.id + m", "width": "64 * (m + 1)"},
    }
    with database.begin_system() as connection:
        tenants = f"SELECT n, 't' || n FROM generate_series(2, {TENANTS}) n"
        connection.execute(text(f"INSERT INTO tenants (id, name) {tenants}"))
        for table, columns in changed.items():
            names = connection.execute(text(f"SELECT * FROM {table} LIMIT 0")).keys()
            values = ", ".join(columns.get(name, f"one.{name}") for name in names)
            copies = f"generate_series(2, {TENANTS}) n, generate_series(1, {SHAPES if table == 'segments' else 1}) m"
            made = f"SELECT {values} FROM {table} one, {copies} WHERE one.{next(iter(columns))} = :job"
            connection.execute(text(f"INSERT INTO {table} ({', '.join(names)}) {made}"), {"job": job})
    if analyzed:
        url = f"{stack.superuser_url.rpartition('/')[0]}/{database._engine.url.database}".replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("ANALYZE")
    asked, values = LOOKS[look]
    assert TENANTS <= _segments_read(database, asked, values) <= 2 * TENANTS * SHAPES
    if look != "lanes":
        others = values | ({"revision": "another"} if "revision" in values else {"revisions": ["another"]})
        assert _segments_read(database, asked, others) < 100, "the work of one model costs what that model has"


def _segments_read(database: Database, asked: Any, values: dict[str, Any]) -> float:
    with database.begin_system() as connection:
        found = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {asked.text}"), values).scalar_one()
    scans = [node for node in _nodes(found[0]["Plan"]) if node.get("Relation Name") == "segments"]
    return sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in scans)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)
