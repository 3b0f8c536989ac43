"""The list of a version: every picture that it should have, with its render key, as one SQLite file.

The next run compares with it, so it holds whatever decides a key, and one digest of the fields that each item had. Its
tables are in the README; FORMAT changes with them. Variants and shapes keep their numbers from version to version, so
that rows of unchanged items are copied as they are.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from services.core.model.errors import PressworkError
from services.core.model.specs import Spec

FORMAT = "1"
NEW, CHANGED, MODEL, RETRIED, UNCHANGED, BROKEN = "new", "changed", "model", "retried", "unchanged", "broken"
RENDERED = (NEW, CHANGED, MODEL, RETRIED)
_TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE variants (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, digest BLOB);
CREATE TABLE shapes (number INTEGER PRIMARY KEY, model_revision TEXT NOT NULL, width INTEGER NOT NULL,
  height INTEGER NOT NULL, steps INTEGER NOT NULL, guidance_scale REAL NOT NULL, output_format TEXT NOT NULL,
  output_compression INTEGER);
CREATE TABLE items (item TEXT PRIMARY KEY, place INTEGER NOT NULL, digest BLOB) WITHOUT ROWID;
CREATE TABLE pictures (item TEXT NOT NULL, variant INTEGER NOT NULL, render_key BLOB NOT NULL, shape INTEGER NOT NULL,
  prompt TEXT NOT NULL, negative_prompt TEXT NOT NULL, seed INTEGER NOT NULL, redraws INTEGER NOT NULL,
  failed INTEGER NOT NULL, change TEXT NOT NULL, PRIMARY KEY (item, variant)) WITHOUT ROWID;
CREATE TABLE problems (item TEXT NOT NULL, place INTEGER NOT NULL, variant INTEGER NOT NULL, field TEXT NOT NULL,
  code TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE removed (item TEXT NOT NULL, variant INTEGER NOT NULL, PRIMARY KEY (item, variant)) WITHOUT ROWID;
"""
# A list of an earlier release lacks these, and one of its programs reads a list without them.
_OF_PHOTOGRAPHS = """
CREATE TABLE first_steps (shape INTEGER PRIMARY KEY, first_step INTEGER NOT NULL);
CREATE TABLE inputs (item TEXT NOT NULL, variant INTEGER NOT NULL, photograph BLOB NOT NULL, sha256 BLOB NOT NULL,
  PRIMARY KEY (item, variant)) WITHOUT ROWID;
CREATE TABLE photographs (digest BLOB PRIMARY KEY, image TEXT NOT NULL, sha256 BLOB NOT NULL, etag TEXT NOT NULL,
  modified TEXT NOT NULL) WITHOUT ROWID;
"""


class BadList(PressworkError):
    """The list of the version before cannot be read."""


@dataclass(frozen=True, slots=True)
class FileShape:
    """What the pictures of a variant have in common: all of a spec but its texts and its seed, and the file's form."""

    model_revision: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    output_format: str
    output_compression: int | None
    first_step: int = 0

    def spec(self, prompt: str, negative_prompt: str, seed: int, input_sha256: bytes = b"") -> Spec:
        return Spec(
            self.model_revision, prompt, negative_prompt, seed, self.width, self.height, self.steps,
            self.guidance_scale, input_sha256=input_sha256.hex(), first_step=self.first_step,
        )  # fmt: skip

    def render_key(self, prompt: str, negative_prompt: str, seed: int, input_sha256: bytes = b"") -> bytes:
        """32 raw bytes: the key that an image of a job with this spec has."""
        spec = self.spec(prompt, negative_prompt, seed, input_sha256)
        return bytes.fromhex(spec.render_key(self.output_format, self.output_compression))


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a version; `place` is its item's in the source. `change` is one of the words above; `failed`: it
    could not be made in that version. `input_sha256` is that of the photograph that it redraws, empty for none, and
    `image` the name by which a request has it, empty while it is not here."""

    item: str
    variant: str
    place: int
    render_key: bytes
    shape: FileShape
    prompt: str
    negative_prompt: str
    seed: int
    redraws: int
    failed: bool
    change: str
    image: str = ""
    input_sha256: bytes = b""

    @property
    def request(self) -> dict[str, Any]:
        """The request, but for its model's name and strength, whose image has this render key."""
        shape = self.shape
        found = {
            "prompt": self.prompt, "negative_prompt": self.negative_prompt, "seed": self.seed,
            "size": f"{shape.width}x{shape.height}", "num_inference_steps": shape.steps,
            "guidance_scale": shape.guidance_scale, "output_format": shape.output_format,
            "output_compression": shape.output_compression, "image": self.image or None,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Redrawn:
    """A picture of a version that was drawn again, so many times in all, and with which seed and key at last."""

    item: str
    variant: str
    redraws: int
    seed: int
    render_key: bytes


@dataclass(frozen=True, slots=True)
class ItemProblem:
    """Why a picture of an item could not be planned. It keeps the one that it had."""

    item: str
    place: int
    variant: str
    field: str
    code: str
    message: str


def create(path: Path) -> sqlite3.Connection:
    """A new, empty list that is written without a journal: a process that dies leaves a file to be thrown away."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}")
    connection.executescript(_TABLES + _OF_PHOTOGRAPHS)
    connection.execute("INSERT INTO main.about VALUES ('format', ?)", (FORMAT,))
    return connection


def attach(connection: sqlite3.Connection, previous: Path | None) -> None:
    """Makes the tables of the version before, or empty ones, known as `previous`. Raises BadList."""
    if previous is None:
        connection.execute("ATTACH '' AS previous")
        connection.executescript(_TABLES.replace("CREATE TABLE ", "CREATE TABLE previous."))
    else:
        _check(previous)
        connection.execute("ATTACH ? AS previous", (str(previous),))
    connection.executescript(_OF_PHOTOGRAPHS.replace("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS previous."))
    connection.execute("PRAGMA previous.cache_size = -65536")


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A list that is complete. Raises BadList."""
    _check(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def entries(path: Path, *changes: str) -> Iterator[Entry]:
    """The pictures in order of item and variant: all, or those of these `changes`."""
    chosen = f"WHERE change IN ({', '.join('?' * len(changes))})" if changes else ""
    with opened(path) as connection:
        variants = _variants(connection)
        known = shapes(connection, "main")
        query = (
            "SELECT pictures.*, place, coalesce(photographs.image, ''), coalesce(inputs.sha256, x'') "  # noqa: S608
            "FROM pictures JOIN items USING (item) LEFT JOIN inputs USING (item, variant) LEFT JOIN photographs "
            "ON photographs.digest = inputs.photograph AND photographs.sha256 = inputs.sha256 "
            f"{chosen} ORDER BY item, variant"
        )
        for row in connection.execute(query, changes):
            item, variant, key, shape, prompt, negative, seed, redraws, failed, change, place, *photograph = row
            yield Entry(
                item, variants[variant], place, key, known[shape], prompt, negative, seed, redraws, bool(failed),
                change, *photograph,
            )  # fmt: skip


def shapes(connection: sqlite3.Connection, schema: str) -> dict[int, FileShape]:
    """The shapes by their numbers, of the list that is attached by this name."""
    rows = connection.execute(
        f"SELECT s.*, coalesce(f.first_step, 0) FROM {schema}.shapes s LEFT JOIN {schema}.first_steps f "  # noqa: S608
        "ON f.shape = s.number"
    )
    return {row[0]: FileShape(*row[1:]) for row in rows}


def removed(path: Path) -> Iterator[tuple[str, str]]:
    """Item and variant of the pictures that the version before had and this one has not."""
    with opened(path) as connection:
        variants = _variants(connection)
        for item, variant in connection.execute("SELECT item, variant FROM removed ORDER BY item, variant"):
            yield item, variants[variant]


def problems(path: Path, most: int = 1_000) -> list[ItemProblem]:
    """The first ones, in order of their places in the source."""
    with opened(path) as connection:
        variants = _variants(connection)
        rows = connection.execute("SELECT * FROM problems ORDER BY place, variant LIMIT ?", (most,))
        return [ItemProblem(row[0], row[1], variants[row[2]], *row[3:]) for row in rows]


def mark_failed(path: Path, failed: Iterator[tuple[str, str]]) -> None:
    """Records which pictures that were drawn for the version, by item and variant, could not be made; the next run
    tries them again, as it does those that were not drawn for a problem and had failed before."""
    with opened(path) as connection:
        numbers = {name: number for number, name in _variants(connection).items()}
        connection.execute("BEGIN")
        connection.execute("UPDATE main.pictures SET failed = 0 WHERE failed AND change <> ?", (BROKEN,))
        rows = ((item, numbers[variant]) for item, variant in failed)
        connection.executemany("UPDATE main.pictures SET failed = 1 WHERE item = ? AND variant = ?", rows)
        connection.execute("COMMIT")


def set_redrawn(path: Path, redrawn: Iterator[Redrawn]) -> None:
    """Records the pictures that were drawn with other seeds while the version was reviewed."""
    with opened(path) as connection:
        numbers = {name: number for number, name in _variants(connection).items()}
        rows = ((one.redraws, one.seed, one.render_key, one.item, numbers[one.variant]) for one in redrawn)
        connection.execute("BEGIN")
        connection.executemany(
            "UPDATE main.pictures SET redraws = ?, seed = ?, render_key = ? WHERE item = ? AND variant = ?", rows
        )
        connection.execute("COMMIT")


def redraw(path: Path, asked: Iterator[tuple[str, str]]) -> None:
    """Makes the next run render these pictures with another seed, which they then keep."""
    with opened(path) as connection:
        numbers = {name: number for number, name in _variants(connection).items()}
        connection.execute("BEGIN")
        for item, variant in asked:
            connection.execute(
                "UPDATE main.pictures SET redraws = redraws + 1 WHERE item = ? AND variant = ?",
                (item, numbers[variant]),
            )
            connection.execute("UPDATE main.items SET digest = NULL WHERE item = ?", (item,))
        connection.execute("COMMIT")


def counts(connection: sqlite3.Connection) -> Mapping[str, int]:
    """How many pictures there are by change, those that were removed included."""
    found: dict[str, int] = dict(connection.execute("SELECT change, count(*) FROM pictures GROUP BY change"))
    [(gone,)] = connection.execute("SELECT count(*) FROM removed")
    return found | {"removed": gone}


def _variants(connection: sqlite3.Connection) -> dict[int, str]:
    return dict(connection.execute("SELECT number, name FROM variants"))


def _check(path: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)) as connection:
            [(found,)] = connection.execute("SELECT value FROM about WHERE name = 'format'")
            [(complete,)] = connection.execute("SELECT count(*) FROM about WHERE name = 'complete'")
    except (sqlite3.Error, ValueError) as error:
        raise BadList(f"The list of a version cannot be read: {error}.") from None
    if found != FORMAT or not complete:
        raise BadList("The list of a version is not complete, or of another release.")


def finish(connection: sqlite3.Connection, about: Mapping[str, Any]) -> None:
    rows = [*about.items(), ("complete", "1")]
    connection.executemany("INSERT INTO main.about VALUES (?, ?)", [(name, str(value)) for name, value in rows])
