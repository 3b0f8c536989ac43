"""The photographs that a plan's variants redraw, by what their templates give: an address, a file's id, an image's id.

Each is known by the sha256 of its bytes. The list of a version keeps what a server said of an address, so that the next
plan asks whether it is still the same; what is to be drawn must be here, in a file that a request can name. Names are
kept as digests: an address may hold a secret.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from services.core.catalogues.templates import Inapplicable

_FIELDS = "image, sha256, etag, modified"


@dataclass(frozen=True, slots=True)
class Photograph:
    """`image` is the name by which a request has it; empty, if its bytes are not here. `etag` and `modified` are its
    server's."""

    image: str
    sha256: bytes
    etag: str = ""
    modified: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`known`: what it was when it was last looked at. `is_drawn`: its bytes may be needed."""

    known: Photograph | None
    is_drawn: bool


Found = Photograph | Inapplicable  # the latter says why it cannot be used
# What names lead to. Of so many, the answer may lack those that take long: whoever asks for them again gets it then.
Find = Callable[[Mapping[str, Wanted], int], Mapping[str, Found]]


class Album:
    """The photographs of one plan. `connection` is that of its list, with the list of the version before attached."""

    def __init__(self, connection: sqlite3.Connection, find: Find) -> None:
        self._connection, self._find = connection, find
        self._found: dict[str, Found] = {}

    def look(self, wanted: Mapping[str, bool], left: int) -> None:
        """Finds these, which may be needed to draw or not, in the place of those that it found before. Up to `left` may
        not be found yet."""
        self._found = {}
        missing: dict[str, Wanted] = {}
        for name, is_drawn in wanted.items():
            now = self._row("main", name)
            if now is not None and (now.image or not is_drawn):
                self._found[name] = now
            else:
                missing[name] = Wanted(now or self._row("previous", name), is_drawn)
        found = self._find(missing, left) if missing else {}
        self._found.update(found)
        self._connection.executemany(
            "INSERT OR REPLACE INTO main.photographs VALUES (?, ?, ?, ?, ?)",
            [
                (digest(name), one.image, one.sha256, one.etag, one.modified)
                for name, one in found.items()
                if isinstance(one, Photograph)
            ],
        )

    def has(self, names: Iterable[str]) -> bool:
        """Whether these were found, or cannot be used."""
        return all(name in self._found for name in names)

    def photograph(self, name: str) -> Photograph:
        """One of those that were looked for. Raises Inapplicable."""
        found = self._found[name]
        if isinstance(found, Inapplicable):
            raise found
        return found

    def digest(self, names: Iterable[str]) -> bytes | None:
        """Changes with the bytes of these photographs. None: one of them cannot be used."""
        found = [self._found[name] for name in names]
        return None if any(isinstance(one, Inapplicable) for one in found) else _digest(found)

    def known_digest(self, names: Iterable[str]) -> bytes | None:
        """What `digest` was in the version before; None: one of them was not known then."""
        found = [self._row("previous", name) for name in names]
        return None if any(one is None for one in found) else _digest(found)

    def finish(self) -> None:
        """Keeps what was known of those that a picture still needs and that could not be looked at."""
        self._connection.execute(
            f"INSERT OR IGNORE INTO main.photographs SELECT digest, {_FIELDS} FROM previous.photographs "  # noqa: S608
            "WHERE digest IN (SELECT photograph FROM main.inputs)"
        )

    def _row(self, schema: str, name: str) -> Photograph | None:
        query = f"SELECT {_FIELDS} FROM {schema}.photographs WHERE digest = ?"  # noqa: S608
        row = self._connection.execute(query, (digest(name),)).fetchone()
        return None if row is None else Photograph(*row)


def digest(name: str) -> bytes:
    """16 bytes, for the list."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _digest(found: Iterable[Found | None]) -> bytes:
    return b"".join(one.sha256 for one in found if isinstance(one, Photograph))
