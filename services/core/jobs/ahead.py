"""The first rows of a large submission, copied while its later requests are still being checked.

All of them lie in one transaction, which the submission completes and commits. If anything stands against that, it is
rolled back, and the submission is recorded from its spool as if nothing had been copied: then it also meets whatever
went wrong, and says so.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

from sqlalchemy import Connection, exc

from services.core.db import deadlines
from services.core.db.database import Database
from services.core.jobs import idempotency, payloads
from services.core.model.errors import PressworkError
from services.core.queue import images
from services.core.queue.images import Runs
from services.core.tenants import admission

log = logging.getLogger(__name__)
PART_BYTES = 4 << 20  # copied at once; of a smaller submission nothing is copied ahead


class Ahead:
    """Copies one submission part by part, each in a thread while the next one is gathered. Not safe between threads.

    `bytes` is how much of the spool is copied, and `end` the index after the last image that is.
    """

    def __init__(
        self, database: Database, tenant_id: int, job_id: int, runs: Runs, *, first: int, idempotency_key: str | None
    ) -> None:  # fmt: skip
        """`first`: the index of the first image. If the key is known already, nothing is copied ahead."""
        self._database, self._tenant_id, self._job_id, self._key = database, tenant_id, job_id, idempotency_key
        self._runs, self._first = runs, first
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._transaction = ExitStack()
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._part: Future[None] | None = None
        self._is_over = False
        self.bytes, self.end = 0, first

    def add(self, rows: bytes, end: int) -> None:
        """Takes the next rows of the spool; `end` is the index after their last image."""
        if self._is_over:
            return
        self._gathered.append(rows)
        self._gathered_bytes += len(rows)
        if self._gathered_bytes < PART_BYTES:
            return
        try:
            self._copy(end)
        except (PressworkError, exc.SQLAlchemyError) as error:
            self._give_up(error)

    def abandon(self) -> None:
        """Rolls back. From now on nothing is copied ahead."""
        self._is_over = True
        self._gathered.clear()
        self.bytes, self.end = 0, self._first
        self._thread.shutdown()
        transaction, self._transaction, self._connection = self._transaction, ExitStack(), None
        with suppress(_Abandoned), transaction:
            raise _Abandoned

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """The transaction that has what was copied, or a new one; committed at the end."""
        try:
            self._wait()
        except exc.SQLAlchemyError as error:
            self._give_up(error)
        transaction, self._transaction = self._transaction, ExitStack()
        with transaction:
            yield self._connection or transaction.enter_context(self._database.begin(self._tenant_id))

    def _copy(self, end: int) -> None:
        if self._connection is None:
            self._connection = self._transaction.enter_context(self._database.begin(self._tenant_id))
            deadlines.lift(self._connection)
            if self._key and idempotency.find(self._connection, self._tenant_id, self._key, "job") is not None:
                self.abandon()
                return
        self._wait()
        admission.look(self._connection, self._tenant_id, images=end - self._first)
        rows, self._gathered = self._gathered, []
        self._part = self._thread.submit(
            _copy, self._connection, self._job_id, rows, self._runs, first=self.end, end=end
        )
        self.bytes, self.end, self._gathered_bytes = self.bytes + self._gathered_bytes, end, 0

    def _wait(self) -> None:
        """Until the part under way is copied. Raises what went wrong with it."""
        part, self._part = self._part, None
        if part is not None:
            part.result()

    def _give_up(self, error: Exception) -> None:
        log.info("nothing is copied ahead", extra={"error": type(error).__name__})
        self.abandon()


class _Abandoned(Exception):
    """Leaves a transaction without a commit."""


def _copy(connection: Connection, job_id: int, rows: list[bytes], runs: Runs, *, first: int, end: int) -> None:
    payloads.copy(connection, job_id, rows)
    images.copy(connection, job_id, runs, first=first, end=end)
