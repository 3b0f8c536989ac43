"""Other queues on Postgres, with jobs that do nothing: `python -m tests.benchmarks.rivals NAME URL JOBS [work]`.

They are no dependencies of ours: `make bench` puts them into `.rivals`, beside the environment. The program creates the
queue's tables, enqueues the jobs, and prints how long two worker processes took for them, from the first one that was
done; `work` is such a process.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

WORKERS = 2
AT_ONCE = 256  # jobs of one fetch (PgQueuer), or at work at a time (procrastinate)


async def pgqueuer(url: str, jobs: int) -> None:
    import asyncpg
    from pgqueuer import PgQueuer
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.domain.types import QueueExecutionMode

    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))
    if jobs:
        await queue.qm.queries.install()
        await queue.qm.queries.enqueue(["nothing"] * jobs, [b"a mug"] * jobs, [0] * jobs)
        return

    @queue.entrypoint("nothing")
    async def nothing(_job: Any) -> None:
        pass

    await queue.qm.run(batch_size=AT_ONCE, mode=QueueExecutionMode.drain)


async def procrastinate(url: str, jobs: int) -> None:
    import procrastinate as library

    app = library.App(connector=library.PsycopgConnector(conninfo=url))

    @app.task(name="nothing")
    async def nothing(prompt: str) -> None:
        pass

    async with app.open_async():
        if jobs:
            await app.schema_manager.apply_schema_async()
            await nothing.batch_defer_async(*({"prompt": "a mug"} for _ in range(jobs)))
        else:
            await app.run_worker_async(wait=False, concurrency=AT_ONCE, install_signal_handlers=False)


RIVALS: dict[str, Callable[[str, int], Awaitable[None]]] = {"pgqueuer": pgqueuer, "procrastinate": procrastinate}
LEFT = {
    "pgqueuer": "SELECT count(*) FROM pgqueuer",
    "procrastinate": "SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'",
}


def main() -> None:
    name, url, jobs, *work = sys.argv[1:]
    if work:
        asyncio.run(RIVALS[name](url, 0))
        return
    asyncio.run(RIVALS[name](url, int(jobs)))
    print("ready", flush=True)
    sys.stdin.readline()
    command = [sys.executable, "-m", "tests.benchmarks.rivals", name, url, "0", "work"]
    workers = [subprocess.Popen(command) for _ in range(WORKERS)]
    with psycopg.connect(url, autocommit=True) as database:
        began, left = 0.0, int(jobs)
        while left:
            (left,) = database.execute(LEFT[name]).fetchone() or (0,)
            began = began or (time.monotonic() if left < int(jobs) else 0.0)
            if all(worker.poll() is not None for worker in workers):
                sys.exit(f"{name}'s workers have ended, and jobs are left")
            time.sleep(0.05)
    print(json.dumps({"seconds": time.monotonic() - began}), flush=True)
    for worker in workers:
        worker.terminate()
        worker.wait(30)


if __name__ == "__main__":
    main()
