"""Reads prompts from JSONL, CSV, TSV, Parquet and plain text, from files or stdin, as requests one by one.

Only the file's format is checked here. The server checks fields, and each row keeps its place so that the server's
errors can name it. A line that is already a request is passed on unchanged.
"""

import csv
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, get_origin

from services.cli import show
from services.cli.exits import Unreadable, Usage
from services.core.model import requests, strict_json
from services.core.model.body import whole, with_defaults
from services.core.model.errors import PressworkError

Form = Literal[
    "jsonl", "csv", "tsv", "parquet", "text", "lines"
]  # lines: requests or prompts, decided by the first line
EXTENSIONS: dict[str, Form] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet",
    ".txt": "text",
}  # fmt: skip
FIELDS = tuple(requests.ImageRequest.model_fields)
_KINDS = {
    name: get_origin(given.annotation) or given.annotation for name, given in requests.ImageRequest.model_fields.items()
}
WHOLE_FIELDS = {name for name, kind in _KINDS.items() if kind is int}
NUMBER_FIELDS = {name for name, kind in _KINDS.items() if kind is float}
OBJECT_FIELDS = {name for name, kind in _KINDS.items() if kind is dict}  # in a format without objects: JSON as text
_WHOLE = re.compile(r"([+-]?[0-9]{1,30})(?:\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_BOM = b"\xef\xbb\xbf"
_EXACT = {"halffloat": 2**11, "float": 2**24, "double": 2**53}  # pyarrow's names of its types
_PARQUET_ROWS = 4096
_STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class Row:
    """One request as a line of JSON, without a line end, and its place in the source."""

    place: int
    line: bytes


@dataclass
class Source:
    """A file of requests and its format. `unit` is what places count: lines, or rows of a Parquet file."""

    path: Path
    form: Form
    columns: Mapping[str, str]  # field of a request -> name in the source
    defaults: Mapping[str, Any] = field(default_factory=dict)
    taken: int = 0  # rows, so far
    position: Callable[[], float | None] = lambda: None  # 0..1, once it is being read

    @property
    def total(self) -> int | None:
        """An estimate of the number of rows, from the share of the file that has been read."""
        share = self.position()
        return round(self.taken / share) if share else None

    @property
    def unit(self) -> str:
        return "row" if self.form == "parquet" else "line"

    @property
    def name(self) -> str:
        return "stdin" if self.path == _STDIN else str(self.path)

    def rows(self) -> Iterator[Row]:
        """Raises PressworkError if the file cannot be read in its format."""
        reader = {
            "jsonl": self._jsonl, "csv": self._csv, "tsv": self._csv, "parquet": self._parquet, "text": self._text,
            "lines": self._lines,
        }  # fmt: skip
        try:
            with _open(self.path) as file:
                self._measure(file)
                for row in reader[self.form](file):
                    self.taken += 1
                    yield row
        except UnicodeDecodeError as error:
            raise Unreadable(
                f"{self.name} is not UTF-8: it has the byte 0x{error.object[error.start]:02x}. Save it as UTF-8."
            ) from None

    def _lines(self, file: IO[bytes]) -> Iterator[Row]:
        head: list[bytes] = []
        for line in file:
            head.append(line)
            if line.strip():
                break
        as_json = head[-1:] != [] and head[-1].removeprefix(_BOM).lstrip().startswith(b"{")
        if self.columns and not as_json:
            raise Usage(
                f"{self.name} looks like plain text, which has no columns; "
                "--format says what it is: csv, tsv or parquet."
            )
        show.say(f"reading {'requests as JSON' if as_json else 'prompts'}, one a line", style="dim")
        yield from (self._jsonl if as_json else self._text)(chain(head, file))

    def _jsonl(self, file: Iterable[bytes]) -> Iterator[Row]:
        for number, line in enumerate(file, 1):
            text = (line.removeprefix(_BOM) if number == 1 else line).strip()
            if text:
                yield Row(number, self._merged(text))

    def _merged(self, line: bytes) -> bytes:
        """The line with the defaults. A line that is not a JSON object is passed on: the server reports the error."""
        if not self.defaults and not self.columns:
            return line
        try:
            value = strict_json.loads(line)
        except strict_json.BadJson:
            return line
        if not isinstance(value, dict):
            return line
        taken = {name: value[column] for name, column in self._taken(value).items()} if self.columns else value
        return _dumped(with_defaults(self.defaults, taken))

    def _text(self, file: Iterable[bytes]) -> Iterator[Row]:
        for number, line in enumerate(file, 1):
            prompt = (line.removeprefix(_BOM) if number == 1 else line).decode().strip()
            if prompt:
                yield Row(number, _dumped({**self.defaults, "prompt": prompt}))

    def _csv(self, file: IO[bytes]) -> Iterator[Row]:
        lines = (line.decode() for line in _without_bom(file))
        csv.field_size_limit(1 << 20)
        reader = csv.reader(lines, delimiter="\t" if self.form == "tsv" else ",", strict=True)
        try:
            head = next(reader, None)
            if head is None:
                return
            taken = [(name, head.index(column)) for name, column in self._taken(dict.fromkeys(head)).items()]
            self._need(taken, head)
            begins = reader.line_num + 1
            for cells in reader:
                if any(cells):
                    self._check_width(cells, head, begins)
                    given = {name: cells[at] for name, at in taken if at < len(cells) and cells[at] != ""}
                    yield Row(begins, _dumped({**self.defaults, **_plain(given)}))
                begins = reader.line_num + 1
        except csv.Error as error:
            raise Unreadable(f"{self.name}, line {reader.line_num}: {error}.") from None

    def _parquet(self, file: IO[bytes]) -> Iterator[Row]:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError:
            raise PressworkError("Parquet needs pyarrow: pip install 'presswork[cli]'.") from None
        with _seekable(file) as whole:
            try:
                table = parquet.ParquetFile(whole)
            except pa.ArrowException as error:
                raise Unreadable(f"{self.name} is no Parquet file: {error}") from None
            taken = self._taken(dict.fromkeys(table.schema_arrow.names))
            self._need(list(taken.items()), table.schema_arrow.names)
            total, number, limits = table.metadata.num_rows, 0, _limits(table.schema_arrow)
            self.position = lambda: number / total if total else 1.0
            for batch in table.iter_batches(_PARQUET_ROWS, columns=list(dict.fromkeys(taken.values()))):
                for value in self._values(batch):
                    number += 1
                    given = {name: value[column] for name, column in taken.items() if value[column] is not None}
                    try:
                        _check_digits(given, {name: limits.get(column) for name, column in taken.items()})
                        yield Row(number, _dumped({**self.defaults, **_plain(given)}))
                    except _LostDigits as error:
                        raise Unreadable(f"{self.name}, row {number}: {error}") from None

    def _values(self, batch: Any) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
        except KeyError:
            raise Unreadable(f"{self.name} has a map with a repeated key.") from None
        return found

    def _taken(self, names: Mapping[str, object]) -> dict[str, str]:
        """The column of each field: the one given with --column, else the one with the field's name."""
        found = {name: column for name, column in self.columns.items() if column in names}
        return found | {name: name for name in FIELDS if name in names and name not in self.columns}

    def _need(self, taken: list[Any], names: list[str]) -> None:
        """Raises Unreadable unless the table has the named columns and a prompt."""
        shown = ", ".join(names) or "none"
        absent = [column for column in self.columns.values() if column not in names]
        if absent:
            raise Unreadable(f"{self.name} has no column {absent[0]!r}; it has: {shown}.")
        if not any(name == "prompt" for name, _ in taken):
            raise Unreadable(f"{self.name} has no column 'prompt'; name it with --column prompt=NAME; it has: {shown}.")
        known = {*FIELDS, *self.columns.values()}
        unused = [name for name in names if name not in known]
        if unused:
            show.say(f"columns of {self.name} that are not fields are ignored: {', '.join(unused)}", style="dim")

    def _check_width(self, cells: list[str], head: list[str], line: int) -> None:
        """Raises Unreadable if a row has too many cells: an unquoted comma would cut a prompt in half."""
        if any(cells[len(head) :]):
            mark = "tab" if self.form == "tsv" else "comma"
            raise Unreadable(
                f"{self.name}, line {line}: it has {len(cells):,} cells, and the first line has {len(head):,}; "
                f"a text with a {mark} in it must be quoted."
            )

    def _measure(self, file: IO[bytes]) -> None:
        if self.path != _STDIN and (size := self.path.stat().st_size):
            self.position = lambda: min(1.0, file.tell() / size) if not file.closed else 1.0


def source(path: Path, form: Form | None, columns: Mapping[str, str], defaults: Mapping[str, Any]) -> Source:
    """Raises Usage if the format is not known, or --column names something that is not a field."""
    for name in columns:
        if name not in FIELDS:
            raise Usage(f"--column names the field {name!r}; a request has: {', '.join(FIELDS)}.")
    if form is None and path == _STDIN:
        return Source(path, "lines", columns, defaults)
    form = form or EXTENSIONS.get(path.suffix.lower())
    if form is None:
        known = ", ".join(EXTENSIONS)
        raise Usage(f"{path} has none of the known endings ({known}); use --format: jsonl, csv, tsv, parquet or text.")
    if form == "text" and columns:
        raise Usage("Plain text has no columns: each line is a prompt.")
    return Source(path, form, columns, defaults)


def parsed(name: str, text: str) -> object:
    """A field's text as the number or object that the field needs. Any other text is returned unchanged, and the
    server reports it."""
    word = text.strip()
    if name in OBJECT_FIELDS:
        try:
            return strict_json.loads(word.encode())
        except (strict_json.BadJson, UnicodeEncodeError):
            return text
    if name in WHOLE_FIELDS and (found := _WHOLE.fullmatch(word)):
        return int(found[1])
    return float(word) if name in NUMBER_FIELDS and _NUMBER.fullmatch(word) else text


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """A table's cells as fields. A program that has no null in a column of numbers writes NaN."""
    gaps = {name for name, value in given.items() if isinstance(value, float) and math.isnan(value)}
    return {name: _cell(name, value) for name, value in given.items() if name not in gaps}


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, Decimal):
        value = _number(value) if name in WHOLE_FIELDS | {"custom_id"} else float(value)
    if name in WHOLE_FIELDS:
        value = whole(value)
    if isinstance(value, bytes):
        value = value.decode()
    return parsed(name, value) if isinstance(value, str) else value


class _LostDigits(Exception):
    """A number of the table would arrive as another one."""


def _limits(schema: Any) -> dict[str, int]:
    """For each column of floats, where whole numbers are no longer exact: 2^11, 2^24 or 2^53."""
    return {entry.name: _EXACT[str(entry.type)] for entry in schema if str(entry.type) in _EXACT}


def _check_digits(given: Mapping[str, Any], limits: Mapping[str, int | None]) -> None:
    """Raises _LostDigits for a whole number in a column of floats that may have been rounded to it."""
    for name in given.keys() & (WHOLE_FIELDS | {"custom_id"}):
        value, limit = given[name], limits.get(name)
        if limit is not None and isinstance(value, float) and abs(value) >= limit:
            raise _LostDigits(
                f"{name} is {value:.0f} in a column of floats, which rounds whole numbers from {limit:,} on; "
                "store the column as integers, decimals or text."
            )


def _number(value: Decimal) -> int | float:
    """The decimal, digit for digit. Raises _LostDigits if JSON has no such number."""
    if value == value.to_integral_value():
        return int(value)
    if Decimal(repr(float(value))) == value:
        return float(value)
    raise _LostDigits(f"{value} has more digits than a number in JSON keeps; store the column as text.")


def _dumped(request: Mapping[str, Any]) -> bytes:
    text = json.dumps(request, ensure_ascii=False, default=_as_json, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def _as_json(value: object) -> object:
    """Converts column types that JSON does not have."""
    return _number(value) if isinstance(value, Decimal) else str(value)


def _open(path: Path) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if path == _STDIN else path.open("rb")


def _without_bom(file: IO[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(file):
        yield line if number else line.removeprefix(_BOM)


@contextmanager
def _seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(file, spool, 1 << 20)
        spool.seek(0)
        yield spool
