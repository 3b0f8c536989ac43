"""What earlier exports of the audit trail hold, for later ones to be compared with: on disk, however many records."""

import sqlite3
from contextlib import closing
from types import TracebackType
from typing import Self

_TABLE = """
CREATE TABLE links (chain INTEGER, place INTEGER, hash BLOB, file INTEGER, PRIMARY KEY (chain, place)) WITHOUT ROWID
"""
_AT_ONCE = 1_000


class Known:
    """The hashes of the records of the files before, the ends of their chains, and the tenants whose deletion they
    have on record. A context manager: its temporary file goes with it."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[int, str]] = {}  # by tenant the last place that there was, and the file that says so
        self.deleted: set[str] = set()
        self._chains: dict[str, int] = {}
        self._files: list[str] = []
        self._new: list[tuple[int, int, bytes, int]] = []
        self._database = sqlite3.connect("", isolation_level=None)  # a file without a name, which the system removes
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(_TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def begin(self, path: str) -> None:
        """What is kept from now on stands in that file."""
        self._flush()
        self._files.append(path)

    def keep(self, tenant: str, place: int, hashed: bytes) -> None:
        """Of a record that two files have, the first one counts."""
        chain = self._chains.setdefault(tenant, len(self._chains))
        self._new.append((chain, place, hashed, len(self._files) - 1))
        if len(self._new) >= _AT_ONCE:
            self._flush()

    def end(self, tenant: str, place: int) -> None:
        """The chain had that many records."""
        if place > self.ends.get(tenant, (0, ""))[0]:
            self.ends[tenant] = place, self._files[-1]

    def hash_of(self, tenant: str, place: int) -> tuple[bytes, str] | None:
        """That of the record in the files before this one, and the file."""
        chain = self._chains.get(tenant)
        if chain is None:
            return None
        found = self._database.execute(
            "SELECT hash, file FROM links WHERE chain = ? AND place = ?", (chain, place)
        ).fetchone()
        return None if found is None else (found[0], self._files[found[1]])

    def _flush(self) -> None:
        with closing(self._database.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.executemany("INSERT OR IGNORE INTO links VALUES (?, ?, ?, ?)", self._new)
            cursor.execute("COMMIT")
        self._new.clear()
