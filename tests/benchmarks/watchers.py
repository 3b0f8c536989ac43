"""watchers: what a thousand open event streams of one job cost the web server, and what a thousand open pages of the
dashboard do, each against one."""

import asyncio
import os
import threading
import time

import psutil

from services.core.db import leases
from services.core.model import ids
from services.core.queue import counters
from services.core.tenants import sessions
from services.dashboard import access
from tests import factories
from tests.benchmarks.claim import _claim, _settle
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report
from tests.processes import Process
from tests.waiting import until

WATCHERS = 1_000
SECONDS = 20.0
PORT = 18433


def run() -> None:
    with benchmark_stack(PRESSWORK_PORT=str(PORT)) as stack:
        factories.register(stack.database)
        job_id = factories.submit(stack.database, stack.settings, [{"prompt": "a mug", "n": 1000}] * 100)
        path, head = f"/v1/jobs/{ids.public_job(job_id)}/events", f"Authorization: Bearer {stack.key}"
        with stack.database.begin_system() as connection:
            cookie = f"Cookie: {access.COOKIE}={sessions.begin(connection, stack.settings.secrets, stack.key)}"
        stopping = threading.Event()
        worker = threading.Thread(target=_work, args=(stack, stopping))
        web = Process("services.web", {**os.environ, **stack.environ}, stack.folder / "web.log")
        try:
            until(lambda: b"200" in asyncio.run(_ask("/livez")).partition(b"\r\n")[0])
            worker.start()
            one, _ = asyncio.run(_watch(path, head, web.pid, 1))
            many, messages = asyncio.run(_watch(path, head, web.pid, WATCHERS))
            page, _ = asyncio.run(_watch("/live", cookie, web.pid, 1))
            pages, told = asyncio.run(_watch("/live", cookie, web.pid, WATCHERS))
        finally:
            stopping.set()
            worker.join()
            web.stop()
    report(
        "watchers", many * 100, one * 100, "% of one core for 1,000 watchers", "one watcher",
        snapshots_per_watcher_and_second=round(messages / WATCHERS / SECONDS, 2),
    )  # fmt: skip
    report(
        "pages", pages * 100, page * 100, "% of one core for 1,000 open pages", "one open page",
        command="make bench NAME=watchers", snapshots_per_page_and_second=round(told / WATCHERS / SECONDS, 2),
    )  # fmt: skip


def _work(stack: BenchmarkStack, stopping: threading.Event) -> None:
    """Some images of the job are done every half second."""
    while not stopping.wait(0.5):
        claim = _claim(stack, 16)
        if claim is not None:
            _settle(stack, claim)
        with stack.database.begin_system() as connection:
            if leases.lock_maintenance(connection):
                counters.fold(connection)


async def _watch(path: str, head: str, pid: int, watchers: int) -> tuple[float, int]:
    """The share of a core that the web server takes, and how many snapshots arrived in all."""
    streams = [await _open(path, head) for _ in range(watchers)]
    seen = [0] * watchers
    readers = [asyncio.create_task(_count(stream, seen, number)) for number, (stream, _) in enumerate(streams)]
    while min(seen) < 2:  # noqa: ASYNC110  they catch up; there is no event to wait for
        await asyncio.sleep(0.1)
    process = psutil.Process(pid)
    earlier, before, began = sum(seen), _cpu(process), time.monotonic()
    await asyncio.sleep(SECONDS)
    share, messages = (_cpu(process) - before) / (time.monotonic() - began), sum(seen) - earlier
    for reader in readers:
        reader.cancel()
    for _, writer in streams:
        writer.close()
    return share, messages


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _open(path: str, head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n{head}\r\n\r\n".encode())
    return reader, writer


async def _count(stream: asyncio.StreamReader, seen: list[int], number: int) -> None:
    while line := await stream.readline():
        seen[number] += line == b"event: job\n"


async def _ask(path: str) -> bytes:
    try:
        reader, writer = await _open(path, "X-None: none")
    except OSError:
        return b""
    answer = await reader.readline()
    writer.close()
    return answer
