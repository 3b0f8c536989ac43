"""The ImageStore contract: where images and files are stored. An object is written once and never changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Protocol

from services.core.storage.other_bucket import OtherBucket


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One stored object. `metadata` was given by its writer; `adopted`: the writer was another process."""

    key: str
    sha256: bytes
    size: int
    metadata: dict[str, str]
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class ForeignObject:
    """An object of another bucket that is being read."""

    size: int
    etag: str
    blocks: Iterator[bytes]


class ImageStore(Protocol):
    """A store of immutable objects. Every method raises StoreUnavailable in an outage and StoreRefused if it is
    refused. A member of a shard (`members.py`) is read, sized and copied like an object; it is dropped with its shard,
    and has no URL."""

    def key(self, name: str) -> str:
        """The key of a new object: its name under this installation's prefix. Keys are recorded whole, so that objects
        stay readable when the prefix changes."""
        ...

    def put(self, key: str, data: bytes, media_type: str, metadata: dict[str, str], *, claim_id: int) -> StoredObject:
        """Stores `data` under `key`. If the key is taken, adopts the object there or uses a key of this claim."""
        ...

    def read(self, key: str) -> bytes: ...

    def read_small(self, key: str) -> bytes:
        """The same for one of many small objects: it costs a fraction of the processor's time."""
        ...

    def stream(self, key: str, part: tuple[int, int] | None = None) -> Iterator[bytes]:
        """The object's bytes, chunk by chunk. `part`: only those from the first to the last of these positions."""
        ...

    def foreign(self, bucket: str, key: str, etag: str = "") -> ForeignObject | None:
        """An object of any bucket that the store's key may read. None: it is still the one with this `etag`. Raises
        ObjectMissing."""
        ...

    def other(self, bucket: str) -> OtherBucket:
        """Another bucket of the same server, for copies."""
        ...

    def overlaps(self, bucket: str, folder: str) -> bool:
        """Whether this installation's objects lie, or may come to lie, in that folder of that bucket."""
        ...

    def put_file(self, key: str, file: IO[bytes], media_type: str) -> None:
        """Stores the file's bytes from its current position. Only one owner may write to `key`; it may write again."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Copies an object with its metadata within the store. A second call is not an error."""
        ...

    def copy_new(
        self,
        source: str,
        target: str,
        *,
        sha256: bytes,
        size: int,
        claim_id: int,
        of_member: Mapping[str, str] | None = None,
    ) -> str | None:
        """Copies an object of that content to `target`, or to a key of this claim; returns the key. An existing object
        at `target` stays. None: `source` is missing or has other content, or `target` has other content. `of_member`:
        the copy's metadata if `source` is a member of a shard, which has none."""
        ...

    def drop(self, key: str) -> None:
        """Deletes the object. A second call is not an error."""
        ...

    def size(self, key: str) -> int:
        """The object's size in bytes. Raises ObjectMissing if there is none."""
        ...

    def under(self, folder: str, after: str = "") -> Iterator[str]:
        """The keys of this installation's objects whose names begin with `folder`, including those without a row, each
        once and in order; only those that come after the key `after`."""
        ...

    def presign(self, key: str, seconds: int, filename: str) -> str:
        """A URL that downloads the object as `filename` and is valid for `seconds`."""
        ...

    def check(self) -> None:
        """Returns if the store answers right now; raises otherwise."""
        ...
