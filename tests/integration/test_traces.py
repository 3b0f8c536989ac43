"""Traces: spans from submit to settle reach a collector in one trace, and cost nothing while they are off."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from services.core import traces
from services.core.db.database import Database
from services.core.model.errors import SettingsError
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from tests import factories
from tests.processes import Process
from tests.waiting import until
from tests.web import Api

PROMPT = "a promptmarker"
GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[tuple[str, Callable[[], list[dict[str, Any]]]]]:
    """Its endpoint, and what it has got."""
    file = tmp_path / "spans.jsonl"
    file.touch()
    process = subprocess.Popen([sys.executable, "-m", "tests.collector", str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    yield f"http://127.0.0.1:{port}/v1/traces", lambda: list(map(json.loads, file.read_text().splitlines()))
    process.kill()
    process.wait()


@pytest.fixture
def web(
    environ: dict[str, str], tmp_path: Path, store: S3Store, database: Database, settings: Settings
) -> Iterator[Callable[..., httpx.Client]]:
    """Starts a web server and gives a client of it."""
    started: list[Process] = []
    clients: list[httpx.Client] = []

    def make(**extra: str) -> httpx.Client:
        port = free_port()
        started.append(Process("services.web", {**environ, **extra, "PRESSWORK_PORT": str(port)}, tmp_path / "web.log"))
        with database.begin_system() as connection:
            key = api_keys.issue_key(connection, settings.secret, factories.TENANT, "test")
        url = f"http://127.0.0.1:{port}"
        clients.append(httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False))
        until(lambda: _lives(url))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    for process in started:
        process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_one_trace_leads_from_the_request_to_the_settlement(
    collector: tuple[str, Callable[[], list[dict[str, Any]]]], web: Callable[..., httpx.Client],
    start: Callable[..., Process],
) -> None:  # fmt: skip
    endpoint, spans = collector
    start(PRESSWORK_TRACES_ENDPOINT=endpoint)
    client = web(PRESSWORK_TRACES_ENDPOINT=endpoint)
    body = {"images": [{"prompt": PROMPT, "size": "64x64", "n": 3}]}
    job = client.post("/v1/jobs", json=body, headers={"traceparent": GIVEN}).json()
    assert job["trace_id"] == GIVEN[3:35]
    own = client.post("/v1/jobs", json=body).json()
    assert own["trace_id"] not in (None, GIVEN[3:35])
    unsampled = client.post("/v1/jobs", json=body, headers={"traceparent": UNSAMPLED}).json()
    assert unsampled["trace_id"] == UNSAMPLED[3:35]
    ids = [job["id"], own["id"], unsampled["id"]]
    until(lambda: all(client.get(f"/v1/jobs/{one}").json()["counts"]["done"] == 3 for one in ids))
    wanted = {"POST /v1/jobs", "commit", "wake-up", "batch", "claim", "render", "store", "settle"}
    until(lambda: {span["name"] for span in spans()} >= wanted)
    found = spans()
    [request] = [span for span in found if span["name"] == "POST /v1/jobs" and span["trace"] == GIVEN[3:35]]
    assert (request["parent"], request["service"]) == (GIVEN[36:52], "presswork-web")
    [commit] = [span for span in found if span["name"] == "commit" and span["trace"] == GIVEN[3:35]]
    assert commit["parent"] == request["id"]
    batches = [span for span in found if span["name"] == "batch"]
    linked = {tuple(link) for span in batches for link in span["links"]}
    assert any(trace == GIVEN[3:35] for trace, _ in linked)
    assert all(span["service"] == "presswork-worker" for span in batches)
    for batch in batches:
        parts = {span["name"] for span in found if span["parent"] == batch["id"]}
        assert parts == {"claim", "render", "store", "settle"}
    traced = {span["trace"] for span in found}
    assert UNSAMPLED[3:35] not in traced
    assert "promptmarker" not in json.dumps(found)


def test_a_job_keeps_the_clients_trace_also_while_traces_are_off(api: Api) -> None:
    body = {"images": [{"prompt": "a mug"}]}
    kept = api.http.post("/v1/jobs", json=body, headers={"traceparent": GIVEN}).json()
    assert kept["trace_id"] == GIVEN[3:35]
    for bad in ("", "nonsense", GIVEN.upper(), f"00-{'0' * 32}-b7ad6b7169203331-01", GIVEN + "-00"):
        assert api.http.post("/v1/jobs", json=body, headers={"traceparent": bad}).json()["trace_id"] is None, bad
    with api.database.begin_system() as connection:
        rows = connection.execute(text("SELECT traceparent FROM jobs WHERE traceparent IS NOT NULL")).scalars().all()
    assert rows == [GIVEN]


def test_while_they_are_off_no_tracer_and_no_exporter_is_imported_and_a_span_is_nothing() -> None:
    program = """
import sys
from services.core import traces
import services.web, scheduler.app, worker.render
traces.configure("web", "", 1.0)
with traces.span("a", parent="x") as span:
    assert span is None
assert traces.span("a") is traces.span("b")
assert traces.batch("a", ["00-%s-%s-01" % ("1" * 32, "2" * 16)], 0) is traces.NO_BATCH
print([name for name in sys.modules if name.startswith("opentelemetry.sdk.trace") or "otlp" in name])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_the_extra_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install 'presswork\[traces\]'"):
        traces.configure("web", "http://127.0.0.1:1/v1/traces", 1.0)


def test_a_collector_that_is_away_disturbs_nothing(
    web: Callable[..., httpx.Client], start: Callable[..., Process]
) -> None:
    away = {"PRESSWORK_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}
    start(**away)
    client = web(**away)
    job = client.post("/v1/jobs", json={"images": [{"prompt": PROMPT, "size": "64x64"}]}).json()["id"]
    until(lambda: client.get(f"/v1/jobs/{job}").json()["counts"]["done"] == 1)
