"""Where images are kept, as everyone else sees it: the ImageStore contract. An object is written once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as it lies in the store. `metadata` was given by whoever wrote it; `adopted`: that was not us."""

    key: str
    sha256: bytes
    size: int
    metadata: dict[str, str]
    adopted: bool = False


class ImageStore(Protocol):
    """A place for immutable objects. Every method raises StoreUnavailable for an outage, StoreRefused for a refusal."""

    def put(self, key: str, data: bytes, media_type: str, metadata: dict[str, str], *, claim_id: int) -> StoredObject:
        """Stores `data` under `key`, or adopts what an earlier writer stored there, or takes a key of this claim."""
        ...

    def read(self, key: str) -> bytes: ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The object's bytes, chunk by chunk."""
        ...

    def put_file(self, key: str, file: IO[bytes], media_type: str) -> None:
        """Stores the file's bytes, from where it stands, under a key that its owner alone writes to; again is no
        error."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Within the store, metadata and all; again is no error."""
        ...

    def copy_new(self, source: str, target: str, *, sha256: bytes, size: int, claim_id: int) -> str | None:
        """Copies an object of that content to `target` or to a key of this claim; says where it lies. What is under
        `target` stays. None: `source` is gone or has another content, or `target` has."""
        ...

    def drop(self, key: str) -> None:
        """Again is no error."""
        ...

    def size(self, key: str) -> int:
        """Of the object, in bytes. Raises ObjectMissing if there is none."""
        ...

    def under(self, prefix: str) -> Iterator[str]:
        """The keys that begin so, also of objects that no row tells of."""
        ...

    def presign(self, key: str, seconds: int, filename: str) -> str:
        """A URL that downloads the object for so many seconds."""
        ...

    def check(self) -> None:
        """Whether the store takes and gives right now."""
        ...
