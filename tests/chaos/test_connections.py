"""Thousands of connections that say nothing, or read nothing, while a known client works: `make chaos`."""

import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from services.core.storage.s3 import S3Store
from tests.processes import Process
from tests.waiting import until
from tests.web import Api, open_api

pytestmark = pytest.mark.chaos
SILENT = 10_000
READERS = 120
ADDRESSES = [f"127.0.1.{number}" for number in range(1, 21)]  # strangers on this machine


@pytest.fixture
def api(settings, store: S3Store) -> Iterator[Api]:
    """The same database, behind a server of its own, for what is done at leisure."""
    with open_api(settings) as running:
        yield running


@pytest.fixture
def web(environ: dict[str, str], tmp_path: Path, api: Api) -> Iterator[Callable[..., tuple[Process, httpx.Client]]]:
    """A web server as a process of its own, and a client that it knows."""
    with ExitStack() as stack:

        def start(**more: str) -> tuple[Process, httpx.Client]:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            process = Process("services.web", {**environ, "PRESSWORK_PORT": str(port), **more}, tmp_path / "web.log")
            stack.callback(process.stop)
            until(lambda: "listening" in process.text())
            headers = {"Authorization": f"Bearer {api.key}"}
            url = f"http://127.0.0.1:{port}"
            http = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=10, trust_env=False))
            assert http.get("/v1/jobs").status_code == 200
            return process, http

        yield start


def works(http: httpx.Client) -> None:
    """A known client that connects anew submits a job."""
    with httpx.Client(base_url=http.base_url, headers=http.headers, timeout=10, trust_env=False) as another:
        assert another.post("/v1/jobs", json={"images": [{"prompt": "a mug"}]}).status_code == 202


def opened(http: httpx.Client, count: int, held: ExitStack) -> list[socket.socket]:
    """So many connections, from many addresses; those that are refused are held too."""
    found = []
    for number in range(count):
        connection = held.enter_context(socket.socket())
        connection.bind((ADDRESSES[number % len(ADDRESSES)], 0))
        connection.settimeout(10)
        with suppress(OSError):
            connection.connect((http.base_url.host, http.base_url.port or 0))
            found.append(connection)
    return found


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < SILENT + 1000:
        pytest.skip(f"This system allows {hard} open files; the test needs {SILENT + 1000}.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_ten_thousand_silent_connections_keep_no_known_client_out(
    web: Callable[..., tuple[Process, httpx.Client]],
) -> None:
    process, http = web()
    before = len(process.text())
    with ExitStack() as held:
        for _ in range(10):
            opened(http, SILENT // 10, held)
            works(http)
    assert len(process.text()) - before < 100_000


def test_at_the_descriptor_limit_the_log_stays_small_and_it_recovers(
    web: Callable[..., tuple[Process, httpx.Client]],
) -> None:
    process, http = web(PRESSWORK_HEAD_SECONDS="5")
    used = psutil.Process(process.pid).num_fds()
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 20, used + 1000))
    before = len(process.text())
    with ExitStack() as held:
        opened(http, 500, held)
        until(lambda: "out of system resource" in process.text())
    until(lambda: _answers(http), seconds=60)
    works(http)
    assert process.text().count("out of system resource") <= 2
    assert len(process.text()) - before < 100_000


def _answers(http: httpx.Client) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(http.base_url.join("/livez"), timeout=2, trust_env=False).status_code == 200
    return False


def test_readers_that_do_not_read_cost_little_and_are_given_up(
    api: Api, web: Callable[..., tuple[Process, httpx.Client]]
) -> None:
    data = b"x" * (30 << 20)
    file = api.http.post("/v1/files", files={"file": ("a.jsonl", data)}, data={"purpose": "batch"}).json()["id"]
    process, http = web(PRESSWORK_WRITE_SECONDS="5")
    assert len(http.get(f"/v1/files/{file}/content").content) == len(data)
    row = f"GET /v1/files/{file}/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n\r\n"
    server = psutil.Process(process.pid)
    before, most = server.memory_info().rss, 0
    with ExitStack() as held:
        for _ in range(READERS):
            reader = held.enter_context(socket.create_connection((http.base_url.host, http.base_url.port or 0)))
            reader.sendall(row.encode())

        def all_given_up() -> bool:
            nonlocal most
            most = max(most, server.memory_info().rss)
            return "answer not read" in process.text() and len(server.net_connections(kind="tcp")) < READERS // 2

        until(all_given_up, seconds=60)
        works(http)
    assert most - before < 120 << 20  # it was 263 MiB
