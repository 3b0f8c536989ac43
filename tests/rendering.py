"""A scheduler and a worker with the simulated pipeline, in threads of this process, on real servers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from scheduler.app import Scheduler
from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from scheduler.periodic_tasks import timetable
from services.core.db.connectivity import Connectivity
from services.core.db.database import Database
from services.core.fleet import models
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import programs
from worker.heartbeat import Heartbeat
from worker.pipelines.simulated import SimulatedPipeline
from worker.render import RenderLoop


@contextmanager
def scheduling(settings: Settings, store: S3Store) -> Iterator[None]:
    """Runs periodic and background tasks until the block ends."""
    settings = programs.settings("scheduler", settings)
    database = Database(settings.database_url, application="scheduler", pool_size=6)
    notifier, stopping = Notifier(settings.redis_url), threading.Event()
    connectivity = Connectivity()
    scheduler = Scheduler(database, timetable(settings, notifier, connectivity), connectivity)
    running = BackgroundTaskRunner(database, background_tasks(settings, store, notifier), scheduler.holder)
    threads = [threading.Thread(target=verb, args=(stopping,)) for verb in (scheduler.run, running.run, running.run)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        database.close()


@contextmanager
def rendering(settings: Settings, store: S3Store) -> Iterator[RenderLoop]:
    """A worker, until the block ends."""
    settings = programs.settings("worker", settings)
    database = Database(settings.database_url, application="worker", pool_size=8, nested_loops=True)
    pipeline = SimulatedPipeline(settings)
    with database.begin_system() as connection:
        models.register(connection, pipeline.card)
    heartbeat = Heartbeat(database, settings)
    heartbeat.start()
    render_loop = RenderLoop(
        settings,
        pipeline,
        database,
        store,
        Notifier(settings.redis_url),
        heartbeat,
        worker_id="worker-1",
        host="worker-1",
    )
    stopping = threading.Event()

    def work() -> None:
        while not stopping.wait(0.05):
            render_loop.run(stopping.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield render_loop
    finally:
        stopping.set()
        render_loop.stopping.set()
        thread.join()
        database.close()
