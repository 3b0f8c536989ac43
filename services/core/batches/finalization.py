"""The background task that ends a batch job: it writes the results of all requests, then the job's final state.

If all images of a request are done, the request is listed in the output file. If any image failed, the request is
listed in the error file together with its successful images. Both files have keys that depend only on the job: if a
process dies while it writes them, the next one writes the same bytes again.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from sqlalchemy import Connection

from services.core.batches import line_format, results
from services.core.batches.results import Request
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.files import files
from services.core.model import ids
from services.core.queue import job_states
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

_PAGE = 250  # requests, each with its whole payload
_JOB = statement("finalization.job")("""
SELECT tenant_id, finished_at, stop_reason, total, base_url, output_expires_seconds FROM jobs WHERE id = :id
""")
_STOPPED = {
    "expired": ("batch_expired", "The request was not executed before the completion window ended."),
    "cancelled": ("batch_cancelled", "The request was not executed before the job was cancelled."),
}


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    return job_states.finishable(connection, excluding, busy)


def run(settings: Settings, store: ImageStore, job_id: int, lease: Lease) -> None:
    with lease.begin() as connection:
        job = connection.execute(_JOB, {"id": job_id}).one()
    if job.finished_at is not None:  # another process ended it in the meantime
        return
    with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second:
        output, errors = _File("output", first), _File("errors", second)
        for request in _requests(lease, job_id) if job.total else ():
            (output if request.is_done else errors).write(_line(settings, job, job_id, request))
        for file in (output, errors):
            file.store(store, _name(job, job_id, file))
            crash_point("output.stored")
            lease.keep()
    with lease.begin() as connection:
        ended = job_states.Files(output.number, errors.number, requests_done=output.lines, requests_failed=errors.lines)
        if job_states.finish(connection, job_id, ended):
            for file in (output, errors):
                _record(connection, job, job_id, file, store.key(_name(job, job_id, file)))


class _File:
    """An output or error file while its lines are collected."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name = name
        self.lines = self.bytes = 0
        self.digest = hashlib.sha256()
        self._file = file
        self._number = ids.new()

    @property
    def number(self) -> int | None:
        """Its id as a file; None if it has no lines, since empty files are not stored."""
        return self._number if self.lines else None

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self.digest.update(line)
        self.lines += 1
        self.bytes += len(line)

    def store(self, store: ImageStore, name: str) -> None:
        if self.lines:
            self._file.seek(0)
            store.put_file(store.key(name), self._file, "application/jsonl")


def _record(connection: Connection, job: Any, job_id: int, file: _File, key: str) -> None:
    if file.number is None:
        return
    files.record(
        connection, file.number, tenant_id=job.tenant_id, purpose="batch_output",
        filename=f"{ids.public_job(job_id)}_{file.name}.jsonl", size=file.bytes, sha256=file.digest.digest(),
        key=key, job_id=job_id, expires_seconds=job.output_expires_seconds,
    )  # fmt: skip


def _name(job: Any, job_id: int, file: _File) -> str:
    return f"files/{job.tenant_id}/{ids.public_job(job_id)}/{file.name}.jsonl"


def _requests(lease: Lease, job_id: int) -> Iterator[Request]:
    after = -1
    while True:
        lease.keep()
        with lease.database.read_system() as connection:
            found = results.page(connection, job_id, after=after, limit=_PAGE)
        if not found:
            return
        yield from found
        after = found[-1].payload.index


def _line(settings: Settings, job: Any, job_id: int, request: Request) -> bytes:
    data = [
        line_format.entry(image, job_id, settings.public_url or job.base_url, settings.secret)
        for image in request.stored
    ]
    error = None if request.is_done else request.failure or _STOPPED[job.stop_reason]
    return line_format.output_line(job_id, request, data, error)
