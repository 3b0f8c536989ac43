"""The images of a shard, packed: of each job their indexes and marks, in order. A shard of 10,000 takes some 20 KB."""

import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.core.marks.asked import MARKS, Mark

_HEAD = struct.Struct("<qI")
CODES: dict[str | None, int] = {None: 0} | {mark: number for number, mark in enumerate(MARKS, 1)}
_MARKS: tuple[Mark | None, ...] = (None, *MARKS)


@dataclass(slots=True)
class OfJob:
    """A job's images in a shard. `marks` holds one code for each index."""

    job_id: int
    indexes: "array[int]"
    marks: bytearray

    @classmethod
    def none(cls, job_id: int) -> "OfJob":
        return cls(job_id, array("I"), bytearray())

    def add(self, index: int, code: int) -> None:
        self.indexes.append(index)
        self.marks.append(code)

    def mark(self, place: int) -> Mark | None:
        return _MARKS[self.marks[place]]


def pack(held: Iterable[OfJob]) -> bytes:
    parts = []
    for one in held:
        parts += [_HEAD.pack(one.job_id, len(one.indexes)), _swapped(one.indexes).tobytes(), bytes(one.marks)]
    return zlib.compress(b"".join(parts))


def unpack(packed: bytes) -> list[OfJob]:
    return list(each(packed))


def each(packed: bytes) -> Iterator[OfJob]:
    return _unpacked(memoryview(zlib.decompress(packed)))


def images(held: Sequence[OfJob]) -> int:
    return sum(len(one.indexes) for one in held)


def _unpacked(data: memoryview) -> Iterator[OfJob]:
    at = 0
    while at < len(data):
        job_id, count = _HEAD.unpack_from(data, at)
        begin = at + _HEAD.size
        indexes = array("I")
        indexes.frombytes(data[begin : begin + 4 * count])
        at = begin + 5 * count
        yield OfJob(job_id, _swapped(indexes), bytearray(data[at - count : at]))


def _swapped(indexes: "array[int]") -> "array[int]":
    """Little-endian on every machine."""
    if sys.byteorder == "big":
        indexes = array("I", indexes)
        indexes.byteswap()
    return indexes
