"""Files whose upload keeps a lease, however slow the store is."""

from collections.abc import Callable
from typing import IO


class KeptFile:
    """A file that extends the lease each time it is read, so that a slow upload does not lose it."""

    def __init__(self, file: IO[bytes], keep: Callable[[], None]) -> None:
        self._file, self._keep = file, keep
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        self._keep()
        return self._file.read(size)

    def close(self) -> None:
        """Does nothing: the uploader closes the file, but its owner still needs it."""
