"""Render loops in the test's own process: the simulated pipeline with a real database and a real store."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.core.db.database import Database
from services.core.fleet import models
from services.core.jobs import queries
from services.core.model.states import ImageState
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage import s3
from tests import programs
from tests.factories import TENANT
from worker.heartbeat import Heartbeat
from worker.pipelines.simulated import SimulatedPipeline
from worker.render import RenderLoop

RenderLoopMaker = Callable[..., RenderLoop]


@contextmanager
def render_loop_maker(database_url: str, usual: Settings, usual_store: s3.S3Store) -> Iterator[RenderLoopMaker]:
    """Makes render loops and stops them all at the end."""
    databases: list[Database] = []
    render_loops: list[RenderLoop] = []

    def make(settings: Settings = usual, worker: str = "worker-1", **parts: object) -> RenderLoop:
        own = programs.address("worker", database_url)
        database = Database(own, application=worker, pool_size=8, nested_loops=True)
        databases.append(database)
        pipeline = parts.get("pipeline", SimulatedPipeline)(settings)
        with database.begin_system() as connection:
            models.register(connection, pipeline.card)
        heartbeat = Heartbeat(database, settings)
        heartbeat.start()
        notifier = Notifier(programs.address("worker", settings.redis_url))
        render_loop = RenderLoop(
            settings, pipeline, database, parts.get("store", usual_store), notifier, heartbeat,
            worker_id=worker, host=worker, exit_process=parts.get("exit_process", os._exit),
            scoring=parts.get("scoring"), judging=parts.get("judging"),
        )  # fmt: skip
        render_loops.append(render_loop)
        return render_loop

    yield make
    for render_loop in render_loops:
        render_loop.stopping.set()
        render_loop.wait_idle()
    for database in databases:
        database.close()


def counts(database: Database, job_id: int) -> dict[str, int]:
    with database.begin(TENANT) as connection:
        found = queries.job(connection, TENANT, job_id)
    assert found is not None
    return {state: count for state, count in found.counts.items() if count}


def images(database: Database, job_id: int, state: ImageState | None = None) -> list[queries.ImageView]:
    with database.begin(TENANT) as connection:
        found = queries.images(connection, TENANT, job_id, state=state, after=-1, limit=1000)
    assert found is not None
    return found


def mugs(count: int, **at: str) -> list[dict[str, object]]:
    """Small requests; `at` replaces prompts: _3="fault:raise"."""
    return [{"prompt": at.get(f"_{index}", f"mug {index}"), "size": "64x64", "seed": index} for index in range(count)]
