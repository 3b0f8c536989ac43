"""Reads the items of a catalogue from JSONL, CSV, TSV, Parquet and .xlsx: each a few named fields, with its place.

The formats are read as requests are; only the wanted fields are kept. A number stays a number, a text a text; an empty
cell is None, and a day is its ISO text. In a file of JSON a field that an item lacks is absent.
"""

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from services.core.items import cells, columns, encodings, parquet, workbooks
from services.core.items.errors import Unreadable
from services.core.items.input_file import InputFile, seekable
from services.core.items.table import Table
from services.core.model import strict_json, suggestions
from services.core.model.body import whole
from services.core.model.errors import Problem


@dataclass(slots=True)
class Item:
    """`problem`: why the row could not be read."""

    place: int
    fields: dict[str, Any] = field(default_factory=dict)
    problem: Problem | None = None


@dataclass(kw_only=True)
class ItemFile(InputFile):
    """A file of items. `wanted`: the fields that are kept, the item's id first. A table must have a column for each;
    spaces, hyphens and capitals in a column's name do not count."""

    wanted: Sequence[str]

    def items(self) -> Iterator[Item]:
        """Raises PressworkError if the file cannot be read in its format."""
        reader = {
            "jsonl": self._jsonl, "csv": self._text, "tsv": self._text, "xlsx": self._xlsx, "parquet": self._parquet,
        }  # fmt: skip
        return self.counted(reader[self.form])

    def _jsonl(self, file: IO[bytes]) -> Iterator[Item]:
        lines, encoding = self.json_lines(file)
        self.how = f"JSON items, {encodings.shown(encoding)}"
        for number, line in enumerate(lines, 1):
            if text := line.strip():
                yield self._of_json(number, text)

    def _of_json(self, place: int, text: bytes) -> Item:
        try:
            value = strict_json.loads(text)
        except strict_json.BadJson as error:
            return Item(place, problem=error.problem(place))
        if not isinstance(value, dict):
            message = f"Found {strict_json.describe(value)} where an object is expected."
            return Item(place, problem=Problem("wrong_type", message, None, place))
        return Item(place, {name: _plain(value[name]) for name in self.wanted if name in value})

    def _text(self, file: IO[bytes]) -> Iterator[Item]:
        encoding = self.detected(file)
        names = {columns.plain(name) for name in self.wanted}
        lines = encodings.lines(self.name, file, encoding)
        yield from self._table(self.delimited_table(lines, encoding, lambda name: columns.plain(name) in names))

    def _xlsx(self, file: IO[bytes]) -> Iterator[Item]:
        name = columns.plain(self.wanted[0])
        with seekable(file) as whole:
            table, total = workbooks.read(self.name, whole, lambda given: columns.plain(given) == name)
            yield from self._table(table, total)

    def _parquet(self, file: IO[bytes]) -> Iterator[Item]:
        names = {columns.plain(name) for name in self.wanted}
        with seekable(file) as whole:
            table, total = parquet.read(self.name, whole, lambda given, _: columns.plain(given) in names)
            yield from self._table(table, total)

    def _table(self, table: Table, total: int | None = None) -> Iterator[Item]:
        self.how, self.head = table.how, table.head
        if not table.head:
            return
        places = [(name, self._place(name)) for name in self.wanted]
        limit = table.limits.get(places[0][1])
        for record in self.records(table, total):
            if record.problem:
                problem = Problem("invalid_row", f"{record.problem}.", None, record.place)
                yield Item(record.place, problem=problem)
                continue
            width = len(record.cells)
            given = {name: record.cells[at] if at < width else None for name, at in places}
            yield self._checked(record.place, given, limit)

    def _place(self, name: str) -> int:
        """Where a field's column is. Raises Unreadable."""
        exact = [at for at, column in enumerate(self.head) if column == name]
        found = exact or [at for at, column in enumerate(self.head) if columns.plain(column) == columns.plain(name)]
        if len(found) > 1:
            named = " and ".join(repr(self.head[at]) for at in found[:2])
            raise Unreadable(f"{self.name} has two columns for {name}: {named}.")
        if not found:
            near = suggestions.meant(name, filter(None, self.head))
            hint = f"did you mean {near}? It" if near else "it"
            raise Unreadable(f"{self.name} has no column {name!r}; {hint} has: {columns.shown(self.head)}.")
        return found[0]

    def _checked(self, place: int, given: Mapping[str, Any], limit: int | None) -> Item:
        """The item, unless a cell is none that can be used. `limit`: from where on the id's column of floats may have
        rounded a whole number."""
        found = {}
        for name, value in given.items():
            if isinstance(value, str):
                if value[:1] == "#" and cells.is_error(value):
                    message = f"{name} is {value}, an error of the spreadsheet."
                    return Item(place, problem=Problem("spreadsheet_error", message, name, place))
                if not value.isascii() and (byte := encodings.bad_byte(value)):
                    message = f"{name} holds the byte {byte}, which is not UTF-8; {encodings.HINT}."
                    return Item(place, problem=Problem("invalid_encoding", message, name, place))
            found[name] = _plain(value)
        number = given[self.wanted[0]]
        if limit is not None and isinstance(number, float) and abs(number) >= limit:
            message = (
                f"{self.wanted[0]} is {number:.0f} in a column of floats, which rounds whole numbers from {limit:,} "
                "on; store the column as integers or text."
            )
            return Item(place, problem=Problem("lost_digits", message, self.wanted[0], place))
        return Item(place, found)


def _plain(value: Any) -> Any:
    """The value as templates see it."""
    if isinstance(value, str):
        if not value or value.isspace():
            return None
        return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
    if isinstance(value, float):
        return None if math.isnan(value) else whole(value)
    if isinstance(value, dt.datetime):
        return value.date().isoformat() if value.time() == dt.time() else str(value)
    if isinstance(value, dt.date | dt.time):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    return value
