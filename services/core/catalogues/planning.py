"""What a run has to do: the items of a source against the list of the version before.

The source is read once. An item whose used fields have the same digest as before, under the same definition, keeps its
pictures without a template being applied, and its rows are copied in one statement; only the others are expanded. So a
night's cost is that of reading. Nothing is kept in memory but a few thousand rows.
"""

import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.core.catalogues import version_list
from services.core.catalogues.definition import Definition
from services.core.catalogues.expansion import Compiled, NotDrawn, item_id
from services.core.catalogues.templates import Inapplicable
from services.core.catalogues.version_list import (
    BROKEN,
    CHANGED,
    MODEL,
    NEW,
    RETRIED,
    UNCHANGED,
    FileShape,
)
from services.core.items.records import Item
from services.core.model.errors import PressworkError, Problem

MAX_PROBLEMS = 100  # of a source's rows, that are kept
_ROWS = 1_000  # written at a time
_ALL = 2**64


class BadSource(PressworkError):
    """The source has rows that are wrong; the published version stays."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        self.problems = list(problems)
        super().__init__(message)


class TooSlow(PressworkError):
    """The plan took longer than it may."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A list at `path`, and what it says: pictures by change, and how many items have a problem or are gone.

    `doubt`: why a person should decide whether it is right; empty, if nobody needs to."""

    path: Path
    pictures: dict[str, int]
    items: int
    items_before: int
    items_removed: int
    items_broken: int
    doubt: str = ""


@dataclass(slots=True)
class _Before:
    """What the version before has of one item, by variant."""

    render_key: bytes
    shape: int
    prompt: str
    negative_prompt: str
    seed: int
    redraws: int
    failed: bool


def make(
    definition: Definition,
    variants: Sequence[Compiled],
    items: Iterable[Item],
    *,
    unit: str,
    previous: Path | None,
    path: Path,
    seconds: float = 3600,
) -> Plan:
    """Writes the list of the next version to `path`. `unit`: what the items' places count, lines or rows.

    Raises:
        BadSource: rows that are broken, have no id or the id of another one, or there are none.
        TooSlow: it took more than `seconds`.
        BadList: the list of the version before cannot be read.
    """
    with closing(version_list.create(path)) as connection:
        version_list.attach(connection, previous)
        connection.execute("BEGIN")
        writer = _Writer(connection, definition, variants)
        deadline = time.monotonic() + seconds
        refused = _Refused(unit)
        for number, item in enumerate(items):
            if not number % _ROWS and time.monotonic() > deadline:
                raise TooSlow(f"The plan was given up after {seconds:g} seconds; its templates may take too long.")
            if item.problem is not None:
                refused.add(item.problem)
                continue
            try:
                name = item_id(item.fields.get(definition.id), definition.id)
            except Inapplicable as error:
                refused.add(Problem(error.code, str(error), definition.id, item.place))
                continue
            writer.add(name, item)
        writer.flush()
        refused.add_duplicates(connection, definition.id)
        refused.check(writer.count)
        plan = writer.finish(path)
        connection.execute("COMMIT")
    return plan


@dataclass(slots=True)
class _Refused:
    """The rows that make a source unusable: how many, and the first ones."""

    unit: str
    count: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        self.count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def add_duplicates(self, connection: sqlite3.Connection, column: str) -> None:
        rows = connection.execute(
            "SELECT s.place, f.place FROM seen s JOIN (SELECT item, min(place) AS place FROM seen GROUP BY item "
            "HAVING count(*) > 1) f ON f.item = s.item AND f.place < s.place ORDER BY s.place"
        )
        for place, first in rows:
            message = f"{column} is the one of {self.unit} {first:,} again; each item must have its own."
            self.add(Problem("duplicate_id", message, column, place))

    def check(self, items: int) -> None:
        """Raises BadSource."""
        if self.count:
            words = f"{self.count:,} rows are" if self.count > 1 else "1 row is"
            first = min(self.problems, key=lambda problem: problem.line or 0)
            where = f"{self.unit} {first.line:,}: " if first.line is not None else ""
            begin = "the first is at " if self.count > 1 else "it is at "
            raise BadSource(f"{words} wrong in the source; {begin}{where}{first.message}", self.problems)
        if not items:
            raise BadSource("The source holds no items.")


class _Writer:
    """Takes the items one by one, and writes the list."""

    def __init__(self, connection: sqlite3.Connection, definition: Definition, variants: Sequence[Compiled]) -> None:
        self.count = self.broken = 0
        self._connection, self._definition = connection, definition
        connection.execute("CREATE TEMP TABLE seen (item TEXT, place INTEGER, digest BLOB, same INTEGER)")
        connection.execute("CREATE TEMP TABLE made AS SELECT * FROM pictures LIMIT 0")
        self._seen: list[tuple[Any, ...]] = []
        self._made: list[tuple[Any, ...]] = []
        self._shapes = _Shapes(connection)
        self._variants = [(number, one, self._shapes.number(one.shape)) for number, one in self._numbered(variants)]
        [(self._items_before,)] = connection.execute("SELECT count(*) FROM previous.items")
        before = dict(connection.execute("SELECT number, digest FROM previous.variants WHERE digest IS NOT NULL"))
        now = {number: one.digest for number, one, _ in self._variants}
        self._alike = {number for number in now if before.get(number) == now[number]}
        self._may_keep = bool(before) and before == now
        self._highest = self._last_chosen()
        self._encode = json.JSONEncoder(default=str, separators=(",", ":")).encode
        self._before_digest = "SELECT digest FROM previous.items WHERE item = ?"

    def add(self, name: str, item: Item) -> None:
        self.count += 1
        digest = hashlib.blake2b(self._encode(item.fields).encode(), digest_size=16).digest()
        is_chosen = self._highest >= 0 and self._bucket(name) <= self._highest
        if self._may_keep and not is_chosen:
            found = self._connection.execute(self._before_digest, (name,)).fetchone()
            if found is not None and found[0] == digest:
                self._see((name, item.place, digest, 1))
                return
        is_whole = self._expand(name, item, is_chosen=is_chosen)
        self.broken += not is_whole
        self._see((name, item.place, digest if is_whole else None, 0))

    def flush(self) -> None:
        self._connection.executemany("INSERT INTO temp.seen VALUES (?, ?, ?, ?)", self._seen)
        self._connection.executemany(f"INSERT INTO temp.made VALUES ({', '.join('?' * 10)})", self._made)  # noqa: S608
        self._seen.clear()
        self._made.clear()

    def finish(self, path: Path) -> Plan:
        run = self._connection.execute
        run("INSERT INTO main.items SELECT item, place, digest FROM seen ORDER BY item")
        run(
            "INSERT INTO main.pictures SELECT * FROM (SELECT p.item, p.variant, p.render_key, p.shape, p.prompt, "  # noqa: S608
            f"p.negative_prompt, p.seed, p.redraws, 0, CASE WHEN p.failed THEN '{RETRIED}' ELSE '{UNCHANGED}' END "
            "FROM seen s JOIN previous.pictures p ON p.item = s.item WHERE s.same UNION ALL SELECT * FROM made) "
            "ORDER BY 1, 2"
        )
        run(
            "INSERT INTO main.removed SELECT p.item, p.variant FROM previous.pictures p LEFT JOIN pictures i "
            "ON i.item = p.item AND i.variant = p.variant WHERE i.item IS NULL"
        )
        [(gone,)] = run(
            "SELECT count(*) FROM previous.items p LEFT JOIN items i ON i.item = p.item WHERE i.item IS NULL"
        )
        version_list.finish(self._connection, {"items": self.count, "items_removed": gone})
        pictures = dict(version_list.counts(self._connection))
        return Plan(path, pictures, self.count, self._items_before, gone, self.broken, self._doubt(gone))

    def _doubt(self, gone: int) -> str:
        limit = self._definition.removed_limit
        if gone <= limit * self._items_before:
            return ""
        return (
            f"{gone:,} of {self._items_before:,} items have gone since the version before, which is more than "
            f"{limit:.4g} of them; a person must say that this is right."
        )

    def _see(self, row: tuple[Any, ...]) -> None:
        self._seen.append(row)
        if len(self._seen) >= _ROWS:
            self.flush()

    def _expand(self, name: str, item: Item, *, is_chosen: bool) -> bool:
        """Applies every variant. Returns whether there was no problem."""
        before = self._before(name)
        is_whole = True
        for number, variant, shape in self._variants:
            old = before.get(number)
            try:
                new = variant.picture(name, item.fields, old.redraws if old else 0)
            except NotDrawn:
                continue
            except Inapplicable as error:
                is_whole = False
                where = f"variants.{variant.name}"
                self._connection.execute(
                    "INSERT INTO main.problems VALUES (?, ?, ?, ?, ?, ?)",
                    (name, item.place, number, where, error.code, str(error)),
                )
                if old is not None:
                    self._keep(name, number, old, BROKEN)
                continue
            if old is None:
                change = NEW
            elif new.render_key == old.render_key:
                change = RETRIED if old.failed else UNCHANGED
            else:
                change = CHANGED
                if number in self._alike and old.shape != shape:
                    is_same = old.render_key == self._shapes.shape(old.shape).render_key(
                        new.prompt, new.negative_prompt, new.seed
                    )
                    if is_same and not is_chosen:
                        self._keep(name, number, old, RETRIED if old.failed else UNCHANGED)
                        continue
                    change = MODEL if is_same else CHANGED
            redraws = old.redraws if old else 0
            self._made.append(
                (name, number, new.render_key, shape, new.prompt, new.negative_prompt, new.seed, redraws, 0, change)
            )
        return is_whole

    def _keep(self, name: str, number: int, old: _Before, change: str) -> None:
        self._made.append(
            (name, number, old.render_key, old.shape, old.prompt, old.negative_prompt, old.seed, old.redraws, 0, change)
        )

    def _before(self, name: str) -> dict[int, _Before]:
        rows = self._connection.execute(
            "SELECT variant, render_key, shape, prompt, negative_prompt, seed, redraws, failed FROM previous.pictures "
            "WHERE item = ?",
            (name,),
        )
        return {row[0]: _Before(*row[1:]) for row in rows}

    def _numbered(self, variants: Sequence[Compiled]) -> list[tuple[int, Compiled]]:
        """Each with its number, which is the one that the version before gave its name."""
        known: dict[str, int] = dict(self._connection.execute("SELECT name, number FROM previous.variants"))
        for one in variants:
            known.setdefault(one.name, max(known.values(), default=0) + 1)
        digests = {one.name: one.digest for one in variants}
        rows = [(number, name, digests.get(name)) for name, number in known.items()]
        self._connection.executemany("INSERT INTO main.variants VALUES (?, ?, ?)", rows)
        return [(known[one.name], one) for one in variants]

    def _bucket(self, name: str) -> int:
        """Where the item stands in the order in which a new model's pictures come."""
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")

    def _last_chosen(self) -> int:
        """The highest bucket whose items are rendered anew because the model has changed; -1: it has not."""
        current = {number: shape for number, _, shape in self._variants if number in self._alike}
        if not current:
            return -1
        pairs = " OR ".join(f"(variant = {number} AND shape <> {shape})" for number, shape in current.items())
        rows = self._connection.execute(f"SELECT DISTINCT item FROM previous.pictures WHERE {pairs}")  # noqa: S608
        waiting: list[int] = sorted(self._bucket(name) for (name,) in rows)
        most: int = math.ceil(self._definition.rerender * self._items_before)
        return -1 if not waiting else _ALL if most >= len(waiting) else waiting[most - 1]


class _Shapes:
    """The shapes by their numbers: those of the version before, and new ones."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("INSERT INTO main.shapes SELECT * FROM previous.shapes")
        rows = connection.execute("SELECT * FROM previous.shapes")
        self._by_number: dict[int, FileShape] = {row[0]: FileShape(*row[1:]) for row in rows}

    def shape(self, number: int) -> FileShape:
        return self._by_number[number]

    def number(self, shape: FileShape) -> int:
        if shape in self._by_number.values():
            return next(number for number, known in self._by_number.items() if known == shape)
        number: int = max(self._by_number, default=0) + 1
        self._by_number[number] = shape
        values = (
            number, shape.model_revision, shape.width, shape.height, shape.steps, shape.guidance_scale,
            shape.output_format, shape.output_compression,
        )  # fmt: skip
        self._connection.execute("INSERT INTO main.shapes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return number
