"""The images that a version's base holds and the version does not, packed: of each job their indexes, and why."""

import json
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from services.core.datasets import held, source_jobs
from services.core.datasets.held import OfJob
from services.core.db.database import Database
from services.core.model import ids

_WORDS = ("filtered", "no source", "rejected", "deleted")
_FILTERED, _NO_SOURCE, _REJECTED, _DELETED = range(len(_WORDS))
_PACKED = b"\x01"  # before what `held` packs; zlib begins with no such byte
_PAGE = 50_000  # images


class Removals:
    """Collects them: a byte for each image of a job that loses some."""

    def __init__(self) -> None:
        self._flags: dict[int, bytearray] = {}
        self._are_there: set[int] = set()

    def add(self, job_id: int, index: int, *, is_there: bool) -> None:
        """`is_there`: the job still belongs to the dataset."""
        flags = self._flags.setdefault(job_id, bytearray())
        if index >= len(flags):
            flags.extend(bytes(index + 1 - len(flags)))
        flags[index] = 1
        if is_there:
            self._are_there.add(job_id)

    def named(self, database: Database, keep: Callable[[], None]) -> list[OfJob]:
        """By job and index, each with a code that says why: in place of a mark's."""
        with database.read_system() as connection:
            known = source_jobs.known(connection, self._flags.keys() - self._are_there)
        found = []
        for job_id, flags in sorted(self._flags.items()):
            keep()
            indexes = array("I", (index for index, flag in enumerate(flags) if flag))
            if job_id in self._are_there:
                codes = _codes(database, job_id, len(flags), indexes, keep)
            else:
                codes = bytearray([_NO_SOURCE if job_id in known else _DELETED]) * len(indexes)
            found.append(OfJob(job_id, indexes, codes))
        return found


def _codes(
    database: Database, job_id: int, end: int, indexes: "array[int]", keep: Callable[[], None]
) -> bytearray:  # fmt: skip
    """Whether each image was rejected, or does not fit the filters."""
    flags = bytearray(end)
    for first in range(0, end, _PAGE):
        keep()
        with database.read_system() as connection:
            for index in source_jobs.rejected(connection, job_id, first, min(first + _PAGE, end)):
                flags[index] = 1
    return bytearray(_REJECTED if flags[index] else _FILTERED for index in indexes)


def pack(removed: list[OfJob]) -> bytes:
    return _PACKED + held.pack(removed)


def unpack(packed: bytes | None) -> Iterator[tuple[str, int, str]]:
    """Public job, index, why."""
    if packed is None:
        return
    if packed[:1] != _PACKED:  # of the release before
        told: list[list[Any]] = json.loads(zlib.decompress(packed))
        yield from ((job, index, why) for job, index, why in told)
        return
    for one in held.each(packed[1:]):
        job = ids.public_job(one.job_id)
        for index, code in zip(one.indexes, one.marks, strict=True):
            yield job, index, _WORDS[code]
