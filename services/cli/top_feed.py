"""What `presswork top` shows, asked of the server every two seconds by a thread of its own."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

from presswork_client import Client, ClientError, FailureCause, Job, Overview

SECONDS = 2.0
_UNFINISHED = ("in_progress", "finalizing", "cancelling", "validating", "queued")


@dataclass(frozen=True, slots=True)
class View:
    """The server's newest answer: unfinished jobs first, the newest of each status first.

    `failing_since`: when the server began to fail (monotonic seconds), 0 if it answers; `error` is what it said.
    `opened` is a job to be shown whole, with the causes of its failures.
    """

    overview: Overview | None = None
    jobs: tuple[Job, ...] = ()
    error: str = ""
    failing_since: float = 0.0
    opened: Job | None = None
    failures: tuple[FailureCause, ...] = field(default=())


class Feed:
    """`rows`: how many jobs to ask for. `opened`: the id of the job to show whole, or "". Both may be set at any time.

    Requests never pile up: the next is sent when the one before was answered.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._view = View()
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.rows, self.opened = 20, ""
        self.message = ""  # what became of the last act

    def start(self) -> None:
        """The first answer. Raises ClientError if there is none."""
        self._view = self._look()
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for a server that takes its time."""
        self._asked.put(None)
        self._thread.join(timeout=0.3)

    @property
    def view(self) -> View:
        return self._view

    def refresh(self) -> None:
        """Looks again now."""
        self._asked.put(lambda: None)

    def act(self, words: str, verb: Callable[[Client], object]) -> None:
        """Does it, looks again, and says that it was done, or why not."""

        def acted() -> None:
            try:
                verb(self._client)
                self.message = words
            except ClientError as error:
                self.message = str(error)

        self.message = "…"
        self._asked.put(acted)

    def _run(self) -> None:
        while True:
            try:
                asked = self._asked.get(timeout=SECONDS)
            except queue.Empty:
                pass
            else:
                if asked is None:
                    return
                asked()
            try:
                self._view = self._look()
            except Exception as error:  # whatever it is, the screen says it, and the next look may do better
                since = self._view.failing_since or time.monotonic()
                self._view = replace(self._view, error=str(error), failing_since=since)

    def _look(self) -> View:
        opened = self._opened(self.opened) if self.opened else (None, ())
        return View(self._client.overview(), tuple(self._jobs()), opened=opened[0], failures=opened[1])

    def _opened(self, job_id: str) -> tuple[Job | None, tuple[FailureCause, ...]]:
        try:
            return self._client.job(job_id), tuple(self._client.failures(job_id))
        except ClientError as error:
            if error.status != 404:
                raise
            self.opened, self.message = "", f"{job_id} was deleted"
            return None, ()

    def _jobs(self) -> list[Job]:
        found: dict[str, Job] = {}
        for status in _UNFINISHED:
            for job in islice(self._client.jobs(status=status, page=self.rows), self.rows):
                found.setdefault(job["id"], job)
            if len(found) >= self.rows:
                return list(found.values())[: self.rows]
        for job in islice(self._client.jobs(page=self.rows), self.rows):
            found.setdefault(job["id"], job)
        return list(found.values())[: self.rows]
