"""A scheduler and a worker with the simulated pipeline, in threads of this process, on real servers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from scheduler.app import Scheduler
from scheduler.background_tasks import Errands, errands
from scheduler.periodic_tasks import timetable
from services.core.db.connectivity import Contact
from services.core.db.database import Database
from services.core.fleet import models
from services.core.notify import Bell
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from worker.lease import Lease
from worker.pipelines.simulated import SimulatedPipeline
from worker.render import Press


@contextmanager
def scheduling(settings: Settings, store: S3Store) -> Iterator[None]:
    """Duties and errands, until the block ends."""
    database = Database(settings.database_url, application="scheduler", pool_size=6)
    bell, stopping = Bell(settings.redis_url), threading.Event()
    contact = Contact()
    scheduler = Scheduler(database, timetable(settings, bell, contact), contact)
    running = Errands(database, errands(settings, store, bell), scheduler.holder)
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
def rendering(settings: Settings, store: S3Store) -> Iterator[Press]:
    """A worker, until the block ends."""
    database = Database(settings.database_url, application="worker", pool_size=8, nested_loops=True)
    pipeline = SimulatedPipeline(settings)
    with database.begin() as connection:
        models.register(connection, pipeline.card)
    lease = Lease(database, settings)
    lease.start()
    press = Press(
        settings, pipeline, database, store, Bell(settings.redis_url), lease, worker_id="worker-1", host="worker-1"
    )
    stopping = threading.Event()

    def work() -> None:
        while not stopping.wait(0.05):
            press.run(stopping.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield press
    finally:
        stopping.set()
        press.stopping.set()
        thread.join()
        database.close()
