"""Celery's consumer in a worker's parent: waits for Redis with patience, and has dead children replaced meanwhile."""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown

log = logging.getLogger(__name__)
PAUSE_SECONDS = 2.0
WATCH_SECONDS = 0.25


class Consumer(CeleryConsumer):
    """Connects every two seconds at most, also to a Redis that accepts connections and then refuses to be used."""

    def __init__(self, *arguments: Any, take_signals: Callable[[], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._take_signals = take_signals

    def start(self) -> None:
        self._take_signals()
        super().start()

    def connect(self) -> Any:
        if self.restart_count > 0:
            self._pause()
        while True:
            maybe_shutdown()
            connection = self.app.connection_for_read()
            try:
                connection.ensure_connection(max_retries=1, interval_start=0)
                connection.transport.register_with_event_loop(connection.connection, self.hub)
            except Exception as error:  # any answer but the right one means that Redis is away
                log.warning("redis away; the child looks for work on its timer", extra={"error": str(error)[:200]})
                self._pause()
            else:
                return connection

    def _pause(self) -> None:
        """Waits, or ends the worker if it is asked to stop. Celery alone looks after its children only while it has a
        connection. Before its first one it cannot replace any: then the parent's watch ends the worker."""
        pool, deadline = self.pool._pool, time.monotonic() + PAUSE_SECONDS  # noqa: SLF001  it has no other name
        while time.monotonic() < deadline:
            maybe_shutdown()
            if pool.on_process_down is not None:
                pool.maintain_pool()
            time.sleep(WATCH_SECONDS)
