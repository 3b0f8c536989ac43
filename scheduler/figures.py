"""What a scheduler shows beside its counters, read when it is asked for: the lead, and what the leader knows."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler import metrics
from scheduler.background_tasks import BackgroundTask
from services.core.db.database import Database
from services.core.metrics import registry
from services.core.model.errors import Unavailable
from services.core.monitoring import installation
from services.core.monitoring.installation import Figures

log = logging.getLogger(__name__)
READ_SECONDS = 5.0  # for so long a look at the database serves everybody who asks


def show(leads: Callable[[], bool], database: Database, background_tasks: Sequence[BackgroundTask]) -> None:
    """Adds them to the process's registry."""
    found = registry.REGISTRY
    found.register(registry.Read("presswork_scheduler_leads", lambda: {(): float(leads())}))
    found.register(registry.Machine("scheduler"))
    found.register(Installation(leads, database, background_tasks))
    ProcessCollector(registry=found)


class Installation(Collector):
    """The figures of the installation, while this scheduler leads. A look that fails shows none: old ones would be
    taken for true."""

    def __init__(
        self, leads: Callable[[], bool], database: Database, background_tasks: Sequence[BackgroundTask]
    ) -> None:
        self._leads, self._database, self._background_tasks = leads, database, background_tasks
        self._guard = threading.Lock()
        self._found: Figures = {}
        self._until = 0.0

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing, so that it is not read when it is registered."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if not self._leads():
            return
        for name, values in self._figures().items():
            yield registry.family(name, values)

    def _figures(self) -> Figures:
        with self._guard:
            if time.monotonic() > self._until:
                self._found = self._read()
                self._until = time.monotonic() + READ_SECONDS
            return self._found

    def _read(self) -> Figures:
        began = time.monotonic()
        try:
            with self._database.begin_system() as connection:
                found = installation.read(connection)
                found["presswork_background_tasks_waiting"] = {
                    (task.name,): len(task.pending(connection, [], [])) for task in self._background_tasks
                }
        except Unavailable as error:
            log.warning("queue not read", extra={"error": str(error)})
        except Exception:
            log.exception("queue not read")
        else:
            metrics.LOOK_SECONDS.set(time.monotonic() - began)
            return found
        metrics.LOOK_FAILURES.inc()
        return {}
