"""custom_ids: which were used already, and valid ones for requests whose own are missing, used twice or invalid."""

import json
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from services.core.items.reading import Row
from services.core.model import requests, strict_json
from services.core.model.body import whole

_LONGEST = 100  # leaves room for "-1000000" below the limit of 128
_OUTSIDE = re.compile(r"[^A-Za-z0-9._-]+")


class Seen:
    """Names with the place of their first use, on disk: a million of them take no memory. The file has no name and goes
    with the object."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "PRAGMA cache_size = -16384",  # KiB
            "CREATE TABLE seen (name TEXT PRIMARY KEY, place INTEGER, copies INTEGER DEFAULT 1) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def first(self, name: str, place: int) -> int:
        """The place where the name was used first: this one, if it is new."""
        if self._database.execute(
            "INSERT OR IGNORE INTO main.seen (name, place) VALUES (?, ?)", (name, place)
        ).rowcount:
            return place
        [(found,)] = self._database.execute("SELECT place FROM seen WHERE name = ?", (name,))
        return int(found)

    def copies(self, name: str) -> int:
        """How often the name was asked for, this time included."""
        statement = "UPDATE main.seen SET copies = copies + 1 WHERE name = ? RETURNING copies"
        [(count,)] = self._database.execute(statement, (name,)).fetchall()
        return int(count)


class Fixes:
    """Makes the custom_ids of rows valid and different. The same rows always get the same ones, so that a submission
    can be repeated and resumed."""

    def __init__(self, unit: str) -> None:
        self.counts: Counter[str] = Counter()
        self._unit, self._seen = unit, Seen()

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            yield row if row.problem else self._fixed(row)

    @property
    def sentence(self) -> str:
        """How many were changed, and why."""
        parts = ", ".join(f"{count:,} {why}" for why, count in sorted(self.counts.items()))
        total = self.counts.total()
        return f"{total:,} custom_ids were changed" + (f": {parts}" if parts else "")

    def _fixed(self, row: Row) -> Row:
        try:
            request = strict_json.loads(row.line)
        except strict_json.BadJson:
            return row
        if not isinstance(request, dict):
            return row
        given, why = request.get("custom_id"), ""
        name = _text(given)
        if not requests.is_custom_id(name):
            why = "invalid" if name.strip() else "missing"
            name = _valid(name) or f"{self._unit}-{row.place}"
        wanted = name
        while self._seen.first(name, row.place) != row.place:
            why = why or "duplicate"
            name = f"{wanted[:_LONGEST]}-{self._seen.copies(wanted)}"
        if not why:
            return row
        self.counts[why] += 1
        line = json.dumps(request | {"custom_id": name}, ensure_ascii=False, separators=(",", ":"))
        return replace(row, line=line.encode("utf-8", "surrogatepass"))


def _text(given: Any) -> str:
    given = whole(given)
    return "" if given is None else given if isinstance(given, str) else json.dumps(given)


def _valid(given: str) -> str:
    """The nearest valid name: letters without their accents, a hyphen for all else. Empty if nothing is left."""
    plain = unicodedata.normalize("NFKD", given).encode("ascii", "ignore").decode() if not given.isascii() else given
    name = _OUTSIDE.sub("-", plain.strip()).strip("-.")[:_LONGEST].rstrip("-.")
    return name if not name or requests.is_custom_id(name) else f"{name.replace('.', '_')}_"
