"""Writes the list of the next version, item by item: what is kept as it is, and what is drawn anew.

An item whose digest is the one of the version before, under the same variants, keeps its pictures without a template
being applied. Where variants redraw photographs, the digest covers these too; many are looked for at a time.
"""

import hashlib
import json
import math
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.core.catalogues import photographs, version_list
from services.core.catalogues.definition import Definition
from services.core.catalogues.expansion import Compiled, NotDrawn
from services.core.catalogues.photographs import Album
from services.core.catalogues.templates import Inapplicable
from services.core.catalogues.version_list import BROKEN, CHANGED, MODEL, NEW, RETRIED, UNCHANGED, FileShape
from services.core.items.records import Item

TOGETHER = 256  # items whose photographs are looked for at a time
_LEFT = 8  # photographs that take long, while the next items' are looked for; fewer than are fetched at once
_MOST_WAITING = 4 * TOGETHER
_ROWS = 1_000  # written at a time
_ALL = 2**64


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
    """What the version before has of one item, by variant. `photograph`: the digest of what its input was called."""

    render_key: bytes
    shape: int
    prompt: str
    negative_prompt: str
    seed: int
    redraws: int
    failed: bool
    photograph: bytes | None
    input_sha256: bytes


class Writer:
    """Takes the items one by one, and writes the list."""

    def __init__(
        self, connection: sqlite3.Connection, definition: Definition, variants: Sequence[Compiled],
        album: Album | None,
    ) -> None:  # fmt: skip
        self.count = self.broken = 0
        self._connection, self._definition, self._album = connection, definition, album
        connection.execute("CREATE TEMP TABLE seen (item TEXT, place INTEGER, digest BLOB, same INTEGER)")
        connection.execute("CREATE TEMP TABLE made AS SELECT * FROM pictures LIMIT 0")
        self._waiting: list[tuple[str, Item, list[str]]] = []  # for their photographs, with the names of these
        self._added = 0  # of these, since photographs were last looked for
        self._seen: list[tuple[Any, ...]] = []
        self._made: list[tuple[Any, ...]] = []
        self._inputs: list[tuple[Any, ...]] = []
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
        if self._album is None:
            self._take(name, item, self._digest(item, b""))
            return
        self._waiting.append((name, item, self._photographs(item)))
        self._added += 1
        if self._added >= TOGETHER:
            self._take_waiting(self._album, _LEFT if len(self._waiting) < _MOST_WAITING else 0)

    def complete(self) -> None:
        """After the last item."""
        if self._album is not None:
            self._take_waiting(self._album, 0)
        self.flush()

    def _take_waiting(self, album: Album, left: int) -> None:
        """Finds the photographs of the items that wait, but for up to `left`; then takes the items that have theirs."""
        wanted: dict[str, bool] = {}
        for name, item, called in self._waiting:
            known = album.known_digest(called)
            is_same = self._is_same(name, self._digest(item, known)) and not self._has_failed(name)
            for one in called:
                wanted[one] = wanted.get(one, False) or not is_same
        album.look(wanted, left)
        for name, item, called in self._waiting:
            if album.has(called):
                self._take(name, item, self._digest(item, album.digest(called)))
        self._waiting = [entry for entry in self._waiting if not album.has(entry[2])]
        self._added = 0

    def _photographs(self, item: Item) -> list[str]:
        """What the variants redraw of it."""
        found = []
        for _, variant, _ in self._variants:
            with suppress(NotDrawn, Inapplicable):  # the latter is said when it is expanded
                found.append(variant.photograph(item.fields))
        return [name for name in found if name]

    def _digest(self, item: Item, of_photographs: bytes | None) -> bytes | None:
        """Of what its pictures are made from. None: not all of it can be used."""
        if of_photographs is None:
            return None
        fields = self._encode(item.fields).encode()
        return hashlib.blake2b(fields + of_photographs, digest_size=16).digest()

    def _is_same(self, name: str, digest: bytes | None) -> bool:
        """Whether the item's pictures of the version before are those that it would have now."""
        if digest is None or not self._may_keep or self._is_chosen(name):
            return False
        found = self._connection.execute(self._before_digest, (name,)).fetchone()
        return found is not None and bool(found[0] == digest)

    def _is_chosen(self, name: str) -> bool:
        return self._highest >= 0 and self._bucket(name) <= self._highest

    def _has_failed(self, name: str) -> bool:
        """Whether a picture of it is tried again."""
        query = "SELECT 1 FROM previous.pictures WHERE item = ? AND failed"
        return self._connection.execute(query, (name,)).fetchone() is not None

    def _take(self, name: str, item: Item, digest: bytes | None) -> None:
        if self._is_same(name, digest):
            self._see((name, item.place, digest, 1))
            return
        is_whole = self._expand(name, item, is_chosen=self._is_chosen(name))
        self.broken += not is_whole
        self._see((name, item.place, digest if is_whole else None, 0))

    def flush(self) -> None:
        self._connection.executemany("INSERT INTO temp.seen VALUES (?, ?, ?, ?)", self._seen)
        self._connection.executemany(f"INSERT INTO temp.made VALUES ({', '.join('?' * 10)})", self._made)  # noqa: S608
        self._connection.executemany("INSERT OR REPLACE INTO main.inputs VALUES (?, ?, ?, ?)", self._inputs)
        for rows in (self._seen, self._made, self._inputs):
            rows.clear()

    def finish(self, path: Path) -> Plan:
        run = self._connection.execute
        run("INSERT INTO main.items SELECT item, place, digest FROM seen ORDER BY item")
        run(
            "INSERT INTO main.pictures SELECT * FROM (SELECT p.item, p.variant, p.render_key, p.shape, p.prompt, "  # noqa: S608
            f"p.negative_prompt, p.seed, p.redraws, 0, CASE WHEN p.failed THEN '{RETRIED}' ELSE '{UNCHANGED}' END "
            "FROM seen s JOIN previous.pictures p ON p.item = s.item WHERE s.same UNION ALL SELECT * FROM made) "
            "ORDER BY 1, 2"
        )
        run("INSERT INTO main.inputs SELECT p.* FROM seen s JOIN previous.inputs p ON p.item = s.item WHERE s.same")
        if self._album is not None:
            self._album.finish()
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
                called = variant.photograph(item.fields)
                sha256 = self._sha256(called) if called else b""
                new = variant.picture(name, item.fields, old.redraws if old else 0, sha256)
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
                        new.prompt, new.negative_prompt, new.seed, new.input_sha256
                    )
                    if is_same and not is_chosen:
                        self._keep(name, number, old, RETRIED if old.failed else UNCHANGED)
                        continue
                    change = MODEL if is_same else CHANGED
            redraws = old.redraws if old else 0
            self._made.append(
                (name, number, new.render_key, shape, new.prompt, new.negative_prompt, new.seed, redraws, 0, change)
            )
            if called:
                self._inputs.append((name, number, photographs.digest(called), new.input_sha256))
        return is_whole

    def _sha256(self, called: str) -> bytes:
        """Of a photograph. Raises Inapplicable."""
        assert self._album is not None, "whoever has photographs redrawn finds them"
        return self._album.photograph(called).sha256

    def _keep(self, name: str, number: int, old: _Before, change: str) -> None:
        failed = int(old.failed and change == BROKEN)  # nothing is drawn now, so it is still to be tried again
        self._made.append(
            (
                name, number, old.render_key, old.shape, old.prompt, old.negative_prompt, old.seed, old.redraws, failed,
                change,
            )
        )  # fmt: skip
        if old.photograph is not None:
            self._inputs.append((name, number, old.photograph, old.input_sha256))

    def _before(self, name: str) -> dict[int, _Before]:
        rows = self._connection.execute(
            "SELECT variant, render_key, shape, prompt, negative_prompt, seed, redraws, failed, photograph, "
            "coalesce(sha256, x'') FROM previous.pictures LEFT JOIN previous.inputs USING (item, variant) "
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
        for table in ("shapes", "first_steps"):
            connection.execute(f"INSERT INTO main.{table} SELECT * FROM previous.{table}")  # noqa: S608
        self._by_number = version_list.shapes(connection, "previous")

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
        if shape.first_step:
            self._connection.execute("INSERT INTO main.first_steps VALUES (?, ?)", (number, shape.first_step))
        return number
