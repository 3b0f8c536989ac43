"""submit: a million prompts in one NDJSON body through the API, against raw COPY of the same rows."""

import json
import os
import threading
import time
from pathlib import Path

import httpx
import psutil
import psycopg

from presswork_client import Client
from services.core.db import partitions
from services.core.model.ids import parse_job
from tests import factories
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report
from tests.processes import Process
from tests.waiting import until

PROMPTS = 1_000_000
PORT = 18431
PROMPT = "a {0} ceramic mug on a wooden table, soft light from the left, catalogue photograph, number {1}"


def run() -> None:
    with benchmark_stack(PRESSWORK_PORT=str(PORT)) as stack:
        factories.register(stack.database)
        file = stack.folder / "prompts.jsonl"
        size = _write(file)
        web = Process("services.web", {**os.environ, **stack.environ}, stack.folder / "web.log")
        try:
            until(up)
            peak = Peak(web.pid)
            began = time.monotonic()
            with Client(f"http://127.0.0.1:{PORT}", stack.key, timeout=600) as client:
                job = client.submit_file(file)
            seconds = time.monotonic() - began
            peak.end()
        finally:
            web.stop()
        copied = raw_copy(stack, parse_job(job["id"]))
    report(
        "submit", PROMPTS / seconds, PROMPTS / copied, "prompts/s", "raw COPY of the same rows",
        prompts=PROMPTS, seconds=round(seconds, 1), copy_seconds=round(copied, 1),
        api_peak_mib=round(peak.bytes / 2**20), body_mib=round(size / 2**20),
    )  # fmt: skip


def _write(file: Path) -> int:
    """Returns its size in bytes."""
    colours = ("red", "teal", "yellow", "white")
    with file.open("w") as out:
        for number in range(PROMPTS):
            row = {"custom_id": f"item-{number}", "prompt": PROMPT.format(colours[number % 4], number), "seed": number}
            out.write(json.dumps(row) + "\n")
    return file.stat().st_size


def up() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/livez").status_code == 200
    except httpx.TransportError:
        return False


class Peak:
    """The largest resident size that a process reaches, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process, self.bytes, self._going = psutil.Process(pid), 0, True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._going = False
        self._thread.join()

    def _run(self) -> None:
        while self._going:
            self.bytes = max(self.bytes, self._process.memory_info().rss)
            time.sleep(0.05)


def raw_copy(stack: BenchmarkStack, job_id: int) -> float:
    """Seconds to COPY the job's payloads and images, prepared as files, into empty tables with the same definition."""
    url = stack.servers.superuser_url.replace("postgresql+psycopg", "postgresql")
    seconds = 0.0
    with psycopg.connect(url) as database:
        for table in ("payloads", "images"):
            leaf = partitions.partition_name(table, job_id)
            file = stack.folder / f"{table}.copy"
            with file.open("wb") as out, database.cursor().copy(f"COPY (SELECT * FROM {leaf}) TO STDOUT") as copy:
                for part in copy:
                    out.write(part)
            database.execute(f"CREATE TABLE raw_{table} (LIKE {leaf} INCLUDING ALL)")
            database.commit()
            began = time.monotonic()
            with file.open("rb") as rows, database.cursor().copy(f"COPY raw_{table} FROM STDIN") as copy:
                while part := rows.read(1 << 18):
                    copy.write(part)
            database.commit()
            seconds += time.monotonic() - began
    return seconds
