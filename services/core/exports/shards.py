"""What every format needs: a shard, the images read and checked, and the writing of files to the store."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Generic, Protocol, TypeVar

from services.core.exports.members import Member
from services.core.exports.options import Options
from services.core.exports.records import File
from services.core.model.errors import ObjectMissing, PressworkError
from services.core.model.metadata_types import Kind
from services.core.storage.contract import ImageStore
from services.core.storage.kept_file import KeptFile

_FETCHERS = 8
_AHEAD = 16  # images in memory


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
        waiting: deque[tuple[Member, Future[bytes]]] = deque()
        with ThreadPoolExecutor(_FETCHERS) as pool:
            try:
                for member in members:
                    waiting.append((member, pool.submit(self._fetch, member)))
                    if len(waiting) == _AHEAD:
                        yield self._next(waiting)
                while waiting:
                    yield self._next(waiting)
            finally:
                for _, future in waiting:
                    future.cancel()

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

    def _next(self, waiting: deque[tuple[Member, Future[bytes]]]) -> tuple[Member, bytes]:
        self.keep()
        member, future = waiting.popleft()
        return member, future.result()

    def _fetch(self, member: Member) -> bytes:
        try:
            data = self.store.read(member.object_key)
        except ObjectMissing:
            raise missing(member) from None
        if hashlib.sha256(data).digest() != member.sha256:
            raise ExportFailed(
                f"Image {member.index} has changed in the store since it was rendered: its sha256 is not the one that "
                "was recorded. Render it again, or restore its object."
            )
        return data


def missing(member: Member) -> ExportFailed:
    return ExportFailed(f"Image {member.index} is no longer in the store. Render it again, or restore its object.")
