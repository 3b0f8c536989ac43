"""turns: how long one tenant's small submissions take while another tenant floods the web server, against without."""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from sqlalchemy import text

from services.core.tenants import api_keys
from tests import factories
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report
from tests.processes import Process
from tests.waiting import until

PORT = 18432
SECONDS = 15.0
FLOODERS = 24
LINES = b"".join(json.dumps({"prompt": f"a mug, number {number}"}).encode() + b"\n" for number in range(20_000))
MATRIX = {
    "template": "a {colour} {thing}",
    "vary": {
        "colour": [f"colour {number}" for number in range(1_000)],
        "thing": [f"thing {number}" for number in range(2_000)],
    },
}


def run() -> None:
    with benchmark_stack(PRESSWORK_PORT=str(PORT)) as stack:
        factories.register(stack.database)
        web = Process("services.web", {**os.environ, **stack.environ}, stack.folder / "web.log")
        try:
            until(up)
            with client(second_key(stack)) as http:
                quiet = submits(http)
                with flood(stack.key) as flooded:
                    loud = submits(http)
        finally:
            web.stop()
    report(
        "turns", percentile(loud), percentile(quiet), "ms, 95th percentile of a submit under another's flood",
        "the same without the flood", median=round(statistics.median(loud), 1),
        median_without=round(statistics.median(quiet), 1), submits=len(loud), flood=flooded(),
    )  # fmt: skip


def submits(http: httpx.Client) -> list[float]:
    """The milliseconds that each of many submissions of one image took."""
    taken: list[float] = []
    until_then = time.monotonic() + SECONDS
    while time.monotonic() < until_then:
        began = time.monotonic()
        answer = http.post("/v1/jobs", json={"images": [{"prompt": "a mug"}]})
        assert answer.status_code == 202, answer.text
        taken.append((time.monotonic() - began) * 1000)
    return taken


@contextmanager
def flood(key: str) -> Iterator[Callable[[], int]]:
    """Submits and estimates without pause from many threads; yields how many were answered."""
    stopping, answered = threading.Event(), [0]

    def go_on(number: int) -> None:
        with client(key) as http:
            while not stopping.is_set():
                if number % 2:
                    http.post("/v1/jobs/estimate", json={"matrix": MATRIX})
                else:
                    http.post("/v1/jobs", content=LINES, headers={"Content-Type": "application/x-ndjson"})
                answered[0] += 1

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(FLOODERS)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: answered[0]
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def second_key(stack: BenchmarkStack) -> str:
    """The key of another tenant."""
    with stack.database.begin_system() as connection:
        tenant = connection.execute(text("INSERT INTO tenants (name) VALUES ('other') RETURNING id")).scalar_one()
        return api_keys.issue_key(connection, stack.settings.secret, tenant, "benchmark")


def client(key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=600, trust_env=False)


def percentile(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.95)]


def up() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/livez", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
