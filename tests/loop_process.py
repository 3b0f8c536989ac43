"""A render loop in a process of its own, which beats as a worker's child does, so that a test can kill it."""

import threading
import time
from dataclasses import replace

from services.core.db.database import Database
from services.core.fleet import workers
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage import s3
from worker.heartbeat import Heartbeat
from worker.pipelines.simulated import SimulatedPipeline
from worker.render import RenderLoop


def run(settings: Settings, name: str) -> None:
    """Renders until the process ends; its host is called like the worker. The settings hold the worker's addresses."""
    database = Database(settings.database_url, application=name, pool_size=8, nested_loops=True)
    pipeline = SimulatedPipeline(replace(settings, model_dir=""))
    heartbeat = Heartbeat(database, settings)
    heartbeat.start()
    loop = RenderLoop(
        settings, pipeline, database, s3.S3Store(settings), Notifier(settings.redis_url), heartbeat,
        worker_id=name, host=name,
    )  # fmt: skip
    register(database, loop, name)
    threading.Thread(target=_beat, args=(database, name), daemon=True).start()
    while True:
        loop.run()
        time.sleep(0.05)


def register(database: Database, loop: RenderLoop, name: str) -> None:
    with database.begin_system() as connection:
        workers.register(
            connection, name, host=name, pid=1, device=loop.pipeline.device, model=loop.pipeline.card.name,
            revision=loop.pipeline.card.revision, state="ready", report=loop.device.report.what_it_is(),
        )  # fmt: skip


def _beat(database: Database, name: str) -> None:
    while True:
        with database.begin_system() as connection:
            workers.beat(connection, name, "busy")
        time.sleep(0.2)
