"""What every format needs: a shard, the images read and checked, and the writing of files to the store."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Generic, Protocol, TypeVar

from services.core.exports.members import Member
from services.core.exports.options import Options
from services.core.exports.records import File
from services.core.model.errors import ObjectMissing, PressworkError
from services.core.model.metadata_types import Kind
from services.core.storage import members as members_of_shards
from services.core.storage.contract import ImageStore
from services.core.storage.kept_file import KeptFile

_FETCHERS = 8
_AHEAD = 16  # lots of images in memory
_LOT = 8  # images that one thread fetches in a row
_LOT_BYTES = 512 << 10  # from there on a lot takes no more
_SHARED = 256  # images of shards in a lot: those of one shard are one read
_SHARED_BYTES = 4 << 20


class ExportFailed(PressworkError):
    """The export cannot be written: a stored image is not what was recorded."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `ordinal` of the `of` shards of a split; `number` counts the shards of all splits. `of` None: there may be
    more. `version`: it was written again for that version of a dataset."""

    number: int
    split: str
    ordinal: int
    of: int | None = None
    version: int | None = None

    @property
    def place(self) -> str:
        """Its place in the split, with its version."""
        return f"{self.ordinal:05d}" + ("" if self.version is None else f"-v{self.version}")

    @property
    def name(self) -> str:
        return f"{self.split}-{self.place}" + ("" if self.of is None else f"-of-{self.of:05d}")


class Written(Protocol):
    """What is written: an export of a job, or a version of a dataset. `columns` are those of the images' metadata."""

    @property
    def folder(self) -> str: ...

    @property
    def options(self) -> Options: ...

    @property
    def base_url(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, Kind]: ...


_What = TypeVar("_What", bound=Written)


@dataclass(frozen=True, slots=True)
class ExportWriter(Generic[_What]):
    """Writes one export. `keep` extends its lease and is called often."""

    export: _What
    store: ImageStore
    secret: str
    keep: Callable[[], None]

    def pictures(self, members: Iterable[Member]) -> Iterator[tuple[Member, bytes]]:
        """Each image with its bytes; a few are read ahead. Raises ExportFailed if one is missing or has changed."""
        waiting: deque[tuple[list[Member], Future[list[bytes]]]] = deque()
        with ThreadPoolExecutor(_FETCHERS) as pool:
            try:
                for lot in lots(members):
                    waiting.append((lot, pool.submit(self.fetch, lot)))
                    if len(waiting) == _AHEAD:
                        yield from self._next(waiting)
                while waiting:
                    yield from self._next(waiting)
            finally:
                for _, future in waiting:
                    future.cancel()

    def fetch(self, lot: Sequence[Member]) -> list[bytes]:
        """The bytes of each image; those of one shard are read at once. Raises as `pictures` does."""
        found = [b""] * len(lot)
        for span in members_of_shards.spans([member.object_key for member in lot]):
            try:
                data = self.store.read_small(span.key)
            except ObjectMissing:
                raise missing(lot[span.parts[0][0]]) from None
            for number, part in span.parts:
                found[number] = data if part is None else data[part]
                _check(lot[number], found[number])
        return found

    def key(self, path: str) -> str:
        return self.store.key(self.export.folder + path)

    def put(self, path: str, file: IO[bytes], media_type: str, images: int) -> File:
        """Stores the whole file. Writing a file again stores the same bytes under the same key."""
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        key = self.key(path)
        self.store.put_file(key, KeptFile(file, self.keep), media_type)  # type: ignore[arg-type]
        return File(path, digest, size, images, key)

    def _next(
        self, waiting: deque[tuple[list[Member], Future[list[bytes]]]]
    ) -> Iterator[tuple[Member, bytes]]:  # fmt: skip
        self.keep()
        lot, future = waiting.popleft()
        return zip(lot, future.result(), strict=True)


def _check(member: Member, data: bytes) -> None:
    if hashlib.sha256(data).digest() != member.sha256:
        raise ExportFailed(
            f"Image {member.index} has changed in the store since it was rendered: its sha256 is not the one that was "
            "recorded. Render it again, or restore its object."
        )


def lots(members: Iterable[Member]) -> Iterator[list[Member]]:
    """What is in memory together, in order: a few small images, many of shards, a large one alone."""
    lot: list[Member] = []
    size, most, most_bytes = 0, 0, 0
    for member in members:
        if lot and (len(lot) == most or size + member.bytes > most_bytes):
            yield lot
            lot, size = [], 0
        if not lot:
            in_shard = members_of_shards.place(member.object_key) is not None
            most, most_bytes = (_SHARED, _SHARED_BYTES) if in_shard else (_LOT, _LOT_BYTES)
        lot.append(member)
        size += member.bytes
    if lot:
        yield lot


def missing(member: Member) -> ExportFailed:
    return ExportFailed(f"Image {member.index} is no longer in the store. Render it again, or restore its object.")
