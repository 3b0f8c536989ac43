"""Logs hold no prompt and no secret: whatever is submitted, refused or broken, in all programs."""

import io
import json
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from services.core import logs
from services.core.db.database import Database
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from services.local.stack import Stack
from tests import cataloguing, factories
from tests.processes import Process
from tests.waiting import until

SECRET = "secretmarker-0123456789abcdef-0123456789"
PROMPT = "a promptmarker on a table"
BROKEN = b'{"images": [{"prompt": "promptmarker\xff'
JSON = {"Content-Type": "application/json"}
ENDPOINT = "/v1/images/generations"


@pytest.fixture
def programs(
    environ: dict[str, str], tmp_path: Path, store: S3Store, database: Database, settings: Settings
) -> Iterator[tuple[httpx.Client, list[Process]]]:
    """A client of a web server, and the web server, a worker and a scheduler."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ours = {
        **environ, "PRESSWORK_SECRET": SECRET, "PRESSWORK_PORT": str(port), "PRESSWORK_SIMULATED_FAULTS": "1",
        "PRESSWORK_LEASE_SECONDS": "3", "PRESSWORK_OIDC_ISSUER": "http://127.0.0.1:9",
        "PRESSWORK_OIDC_CLIENT_SECRET": f"{SECRET}-oidc", "PRESSWORK_OIDC_SCOPES": "a=view",
    }  # fmt: skip
    modules = ("services.web", "worker.app", "scheduler.app")
    running = [Process(module, ours, tmp_path / f"{module}.log") for module in modules]
    with database.begin_system() as connection:
        key = api_keys.issue_key(connection, SECRET, factories.TENANT, "test")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=60) as client:
        until(lambda: "listening" in running[0].text())
        until(lambda: client.get("/v1/models").json()["data"])
        yield client, running
    for process in running:
        process.kill()


def constrained(stack: Stack, settings: Settings) -> None:
    """From now on the database refuses rows with a word, and all results, and its errors say what these rows hold."""
    name = settings.database_url.rpartition("/")[2]
    address = f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", "")
    with psycopg.connect(address, autocommit=True) as admin:
        admin.execute("ALTER TABLE payloads ADD CHECK (prompt NOT LIKE '%breaksmarker%') NOT VALID")
        admin.execute("ALTER TABLE jobs ADD CHECK (labels::text NOT LIKE '%breaksmarker%') NOT VALID")
        admin.execute("ALTER TABLE results ADD CHECK (bytes < 0) NOT VALID")


def ended(client: httpx.Client, job: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
        return found if found["finished_at"] else None

    return until(look)  # type: ignore[return-value]


def test_no_program_logs_a_prompt_or_a_secret(
    programs: tuple[httpx.Client, list[Process]], stack: Stack, settings: Settings, environ: dict[str, str],
    database: Database,
) -> None:  # fmt: skip
    client, running = programs
    images = [{"prompt": PROMPT, "size": "64x64"}, {"prompt": f"{PROMPT} fault:raise", "size": "64x64"},
              {"prompt": f"{PROMPT} fault:nan", "size": "64x64", "negative_prompt": PROMPT}]  # fmt: skip
    job = client.post("/v1/jobs", json={"images": images, "labels": {"a": "labelpromptmarker"}}).json()["id"]
    found = ended(client, job)
    assert found["counts"]["done"] >= 1
    assert found["counts"]["failed"] >= 1
    client.post(f"/v1/jobs/{job}/retry")
    client.get(f"/v1/jobs/{job}/search", params={"text": "promptmarker"})
    for bad in ({"images": [{"prompt": PROMPT, "promptmarker": 1, "size": PROMPT}]}, {"images": PROMPT}, PROMPT):
        assert client.post("/v1/jobs", json=bad).status_code in (400, 422)
    assert client.post("/v1/jobs", content=BROKEN, headers=JSON).status_code in (400, 422)
    client.post(ENDPOINT, json={"prompt": PROMPT, "size": "64x64"})
    client.post(ENDPOINT, json={"prompt": PROMPT, "quality": PROMPT})
    lines = b"".join(
        json.dumps(
            {"custom_id": f"l{n}", "method": "POST", "url": ENDPOINT, "body": {"prompt": PROMPT, **more}}
        ).encode()
        + b"\n"
        for n, more in enumerate(({"size": "64x64"}, {"size": PROMPT}))
    )
    file = client.post("/v1/files", files={"file": ("promptmarker.jsonl", lines)}, data={"purpose": "batch"}).json()
    batch = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    refused = client.post("/v1/batches", json=batch).json()["id"]
    until(lambda: client.get(f"/v1/batches/{refused}").json()["status"] == "failed")
    source = {"url": f"https://user:{SECRET}@127.0.0.1:9/promptmarker.csv?token={SECRET}"}
    client.put("/v1/catalogues/shop", json=cataloguing.DEFINITION | {"source": source})
    source = {"url": f"https://127.0.0.1:9/feed.csv?token={SECRET}"}
    if client.put("/v1/catalogues/shop", json=cataloguing.DEFINITION | {"source": source}).status_code < 300:
        run = client.post("/v1/catalogues/shop/runs", json={}).json()["id"]
        until(lambda: client.get(f"/v1/catalogues/shop/runs/{run}").json()["finished_at"])
    client.get("/v1/jobs", headers={"Authorization": f"Bearer pw_{SECRET}"})
    client.get(f"/v1/jobs/job_0000000000000/images/0/content?signature={SECRET}")
    client.get("/sign-in/provider")
    constrained(stack, settings)
    body = {"images": [{"prompt": f"{PROMPT} breaksmarker", "size": "64x64"}]}
    assert client.post("/v1/jobs", json=body).status_code == 500
    body = {"images": [{"prompt": "a mug", "size": "64x64"}], "labels": {"a": "promptmarker breaksmarker"}}
    assert client.post("/v1/jobs", json=body).status_code == 500
    schedule = {"name": "n", "cron": "0 1 * * *", "target": {"job": {"images": [{"prompt": f"{PROMPT} breaksmarker"}]}}}
    client.post("/v1/schedules", json=schedule)
    client.post("/v1/schedules/n/run")
    until(lambda: "exception" in running[2].text())
    client.post("/v1/jobs", json={"images": [{"prompt": PROMPT, "size": "64x64"}]})
    until(lambda: "settle failed" in running[1].text())
    written = "\n".join(process.text() for process in running)
    assert '"event": "request failed"' in written
    assert "CheckViolation" in written
    hidden = {"promptmarker", "secretmarker", "breaksmarker"}
    secrets = [value for name, value in environ.items() if Settings.variables().get(name)]
    passwords = [urlsplit(value).password or "" if "://" in value else value for value in secrets]
    hidden |= {word for word in passwords if len(word) > 8}
    for word in hidden:
        assert word not in written, [line for line in written.splitlines() if word in line][:3]


def test_what_an_error_quotes_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.root, "handlers", [])
    logs.configure("test")
    log = logging.getLogger("services.test")
    word = "secretmarker"
    try:
        raise ValueError(f"https://somebody:{word}@example.org/a failed with key pw_abcdefgh_{word}")
    except ValueError:
        log.exception(
            "it failed", extra={"url": f"redis://:{word}@host:1/0", "link": f"https://host/a?signature={word}"}
        )
    found = json.loads(stream.getvalue())
    assert "secretmarker" not in stream.getvalue()
    assert "ValueError: https://***@example.org/a failed" in found["exception"]
    assert found["url"] == "redis://***@host:1/0"
