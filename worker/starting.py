"""Tells the database that this worker is starting, and what it does, until it is registered."""

import logging
import threading

from services.core.db.database import Database
from services.core.fleet import workers
from services.core.model.errors import DatabaseUnavailable
from worker import activity

log = logging.getLogger(__name__)
BEAT_SECONDS = 1.0


class Starting:
    """A thread that tells it every second."""

    def __init__(self, database: Database, worker_id: str, *, host: str, pid: int) -> None:
        self._database, self._worker_id, self._host, self._pid = database, worker_id, host, pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="starting", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """After this the worker is not said to be starting again."""
        self._over.set()
        self._thread.join()

    def _tell(self) -> None:
        while not self._over.is_set():
            try:
                with self._database.begin_system() as connection:
                    doing = activity.now() or "loading the model"
                    workers.starts(connection, self._worker_id, host=self._host, pid=self._pid, doing=doing)
            except DatabaseUnavailable as error:
                log.warning("start not told", extra={"error": str(error)})
            self._over.wait(BEAT_SECONDS)
