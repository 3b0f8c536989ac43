"""bulk: millions of prompts, appended to a draft in chunks through the API, against raw COPY of the very same rows.

`BULK_PROMPTS` sets how many. The web process's memory is reported after the first chunks and at the end.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator

import httpx
import psutil

from services.core.model.ids import parse_job
from tests import factories
from tests.benchmarks.environment import benchmark_stack
from tests.benchmarks.report import report
from tests.benchmarks.submit import PROMPT, Peak, raw_copy, up
from tests.processes import Process
from tests.waiting import until

PROMPTS = int(os.environ.get("BULK_PROMPTS", "5000000"))
CHUNK = 50_000
FIRST = 3  # chunks, after which the web process is warm
PORT = 18431
COLOURS = ("red", "teal", "yellow", "white")


def run() -> None:
    with benchmark_stack(PRESSWORK_PORT=str(PORT)) as stack:
        factories.register(stack.database)
        web = Process("services.web", {**os.environ, **stack.environ}, stack.folder / "web.log")
        try:
            until(up)
            process, peak = psutil.Process(web.pid), Peak(web.pid)
            headers = {"Authorization": f"Bearer {stack.key}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=600) as client:
                job = _ok(client.post("/v1/jobs", json={"draft": True}))["id"]
                spent, warm, rest = 0.0, 0, []
                for number, body in enumerate(_bodies()):
                    began = time.monotonic()
                    _ok(client.put(f"/v1/jobs/{job}/chunks/{number}", content=body, headers=_LINES))
                    rest.append(time.monotonic() - began)
                    if number + 1 == FIRST:
                        warm = process.memory_info().rss
                began = time.monotonic()
                finalized = _ok(client.post(f"/v1/jobs/{job}/finalize", json={"chunks": len(rest), "images": PROMPTS}))
                finalizing = time.monotonic() - began
                spent = sum(rest) + finalizing
            at_end = process.memory_info().rss
            peak.end()
        finally:
            web.stop()
        assert finalized["counts"]["queued"] == PROMPTS
        copied = raw_copy(stack, parse_job(job))
    report(
        "bulk", PROMPTS / spent, PROMPTS / copied, "prompts/s", "raw COPY of the same rows",
        prompts=PROMPTS, chunks=len(rest), seconds=round(spent, 1), finalize_seconds=round(finalizing, 1),
        first_chunks_seconds=round(sum(rest[:FIRST]) / FIRST, 2),
        last_chunks_seconds=round(sum(rest[-FIRST:]) / FIRST, 2),
        copy_seconds=round(copied, 1), web_mib_after_first_chunks=round(warm / 2**20),
        web_mib_at_the_end=round(at_end / 2**20), web_mib_peak=round(peak.bytes / 2**20),
    )  # fmt: skip


_LINES = {"Content-Type": "application/x-ndjson"}


def _bodies() -> Iterator[bytes]:
    """The same rows as `submit` sends, chunk by chunk."""
    rows = iter(range(PROMPTS))
    while numbers := list(itertools.islice(rows, CHUNK)):
        yield b"".join(
            json.dumps({"custom_id": f"item-{n}", "prompt": PROMPT.format(COLOURS[n % 4], n), "seed": n}).encode()
            + b"\n"
            for n in numbers
        )


def _ok(answer: httpx.Response) -> dict[str, object]:
    assert answer.is_success, answer.text
    found: dict[str, object] = answer.json()
    return found
