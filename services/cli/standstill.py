"""Why a job that somebody follows stands still: asked for once nothing has changed for a while, and told once."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from presswork_client import Client, ClientError

STILL_SECONDS = 10.0
_LOOK_SECONDS = 0.2


class Standstill:
    """Looks from a thread of its own, since whoever follows a job waits for its next change."""

    def __init__(self, client: Client, job_id: str, tell: Callable[[str], None]) -> None:
        """`tell` gets each sentence that says what the job waits for, from that thread."""
        self._client, self._job_id, self._tell = client, job_id, tell
        self._told: set[str] = set()
        self._moved_at = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._look_for_ever, name="standstill", daemon=True).start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._ended.set()

    def moved(self) -> None:
        """The job has changed just now."""
        self._moved_at = time.monotonic()

    def _look_for_ever(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            if time.monotonic() - self._moved_at < STILL_SECONDS:
                continue
            self.moved()
            try:
                found = self._client.job(self._job_id)
            except ClientError:  # whoever follows the job hears of it
                continue
            for sentence in found["warnings"] if found["counts"]["queued"] else ():
                if sentence not in self._told and not self._ended.is_set():
                    self._told.add(sentence)
                    self._tell(sentence)
