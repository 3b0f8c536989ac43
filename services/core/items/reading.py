"""Reads prompts from JSONL, tables and plain text, from files or stdin, as requests one by one.

Only the file's format is checked here. The server checks fields, and each row keeps its place so that the server's
errors can name it. A row that cannot be read carries its problem, and the rows after it are read. A line that is
already a request is passed on unchanged.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

from services.core.items import cells, columns, delimited, encodings, parquet, workbooks
from services.core.items.columns import FIELDS
from services.core.items.errors import Unreadable, WrongOption
from services.core.items.table import Record, Table, is_empty
from services.core.model import strict_json
from services.core.model.body import with_defaults
from services.core.model.errors import Problem

Form = Literal[
    "jsonl", "csv", "tsv", "xlsx", "parquet", "text", "lines"
]  # lines: requests, prompts or a table, decided by the first line
EXTENSIONS: dict[str, Form] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".xlsx": "xlsx",
    ".xlsm": "xlsx", ".parquet": "parquet", ".pq": "parquet", ".txt": "lines",
}  # fmt: skip
_STDIN = Path("-")
_WATCHED = 1_000  # rows between two looks
_BINARY = ("xlsx", "parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One request as a line of JSON, without a line end, and its place in the source. `cells`: what stood there.
    `problem`: why it cannot be a request."""

    place: int
    line: bytes
    cells: Sequence[Any] = ()
    problem: Problem | None = None


@dataclass
class Source:
    """A file of requests and its format. `unit` is what places count: lines, or rows of Parquet and Excel."""

    path: Path
    form: Form
    columns: Mapping[str, str]  # field of a request -> name in the source
    defaults: Mapping[str, Any] = field(default_factory=dict)
    delimiter: str | None = None
    encoding: str | None = None
    keeps_cells: bool = False  # every column of a Parquet file is read, not only those of fields
    head: Sequence[str] = ()  # the names of the columns, once it is being read
    how: str = ""  # what its format was found to be
    taken: int = 0  # rows, so far
    is_read: bool = False  # to its end
    position: Callable[[], float | None] = lambda: None  # 0..1, once it is being read
    watch: Callable[[], None] | None = None  # called now and then
    tell: Callable[[str], None] = lambda _: None  # takes a remark about the file, for its owner

    @property
    def total(self) -> int | None:
        """An estimate of the number of rows, from the share of the file that has been read."""
        share = self.position()
        return round(self.taken / share) if share else None

    @property
    def unit(self) -> str:
        return "row" if self.form in _BINARY else "line"

    @property
    def name(self) -> str:
        return "stdin" if self.path == _STDIN else str(self.path)

    @property
    def described(self) -> str:
        """What it was read as: "p.csv was read as semicolon-separated, UTF-16, 5,000 rows"."""
        count = f", {self.taken:,} {'row' if self.taken == 1 else 'rows'}" if self.is_read else ""
        return f"{self.name} was read as {self.how}{count}"

    def rows(self) -> Iterator[Row]:
        """Raises PressworkError if the file cannot be read in its format."""
        reader = {
            "jsonl": self._jsonl, "csv": self._csv, "tsv": self._csv, "xlsx": self._xlsx, "parquet": self._parquet,
            "text": self._text, "lines": self._lines,
        }  # fmt: skip
        self.taken, self.is_read = 0, False
        try:
            with _open(self.path) as file:
                self._measure(file)
                for row in reader[self.form](file):
                    self.taken += 1
                    if self.watch is not None and not self.taken % _WATCHED:
                        self.watch()
                    yield row
        except UnicodeError as error:
            reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
            raise Unreadable(
                f"{self.name} is not {encodings.shown(self.encoding or 'UTF-8')} as it should be: {reason}; "
                f"{encodings.HINT}."
            ) from None
        self.is_read = True

    def _lines(self, file: IO[bytes]) -> Iterator[Row]:
        if encodings.head(file).startswith(b"PK\x03\x04"):
            self.form = "xlsx"
            yield from self._xlsx(file)
            return
        encoding = self._encoding(file)
        coming = self._encoded(file, encoding)
        head: list[bytes] = []
        for line in coming:
            head.append(line)
            if line.strip():
                break
        first = head[-1].decode(errors="replace") if head else ""
        if first.lstrip().startswith("{"):
            yield from self._requests(chain(head, coming), encoding)
        elif self.delimiter or delimited.is_head(first, columns.prompts(self.columns)):
            self.form = "csv"
            yield from self._delimited(
                (line.decode(errors="surrogateescape") for line in chain(head, coming)), encoding
            )
        elif self.columns:
            raise WrongOption(
                f"{self.name} looks like plain text, which has no columns; "
                "--format says what it is: csv, tsv, xlsx or parquet."
            )
        else:
            yield from self._prompts(chain(head, coming), encoding)

    def _jsonl(self, file: IO[bytes]) -> Iterator[Row]:
        beginning = encodings.head(file)
        encodings.check_is_text(self.name, beginning)
        encoding = self.encoding or encodings.marked(beginning) or "utf-8"  # JSON is never in another one
        yield from self._requests(self._encoded(file, encoding), encoding)

    def _text(self, file: IO[bytes]) -> Iterator[Row]:
        encoding = self._encoding(file)
        yield from self._prompts(self._encoded(file, encoding), encoding)

    def _requests(self, lines: Iterable[bytes], encoding: str) -> Iterator[Row]:
        self.how, self.head = f"requests as JSON, {encodings.shown(encoding)}", ("request",)
        for number, line in enumerate(lines, 1):
            if text := line.strip():
                yield Row(number, self._merged(text), (text.decode(errors="replace"),) if self.keeps_cells else ())

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
        return _dumped(with_defaults(self.defaults, self._renamed(value) if self.columns else value))

    def _renamed(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a request whose names are as --column says."""
        found = {name: value[column] for name, column in self.columns.items() if column in value}
        return found | {name: value[name] for name in FIELDS if name in value and name not in self.columns}

    def _prompts(self, lines: Iterable[bytes], encoding: str) -> Iterator[Row]:
        self.how, self.head = f"prompts, one a line, {encodings.shown(encoding)}", ("prompt",)
        for number, line in enumerate(lines, 1):
            prompt = line.decode(errors="surrogateescape").strip()
            if prompt:
                yield self._row(number, {**self.defaults, "prompt": prompt}, (prompt,))

    def _csv(self, file: IO[bytes]) -> Iterator[Row]:
        encoding = self._encoding(file)
        yield from self._delimited(encodings.lines(file, encoding), encoding)

    def _delimited(self, lines: Iterator[str], encoding: str) -> Iterator[Row]:
        usual = "\t" if self.form == "tsv" else ","
        table = delimited.read(self.name, lines, self.delimiter, usual, columns.known(self.columns))
        table.how += f", {encodings.shown(encoding)}"
        self.delimiter = table.delimiter
        yield from self._table(table)

    def _xlsx(self, file: IO[bytes]) -> Iterator[Row]:
        with _seekable(file) as whole:
            table, total = workbooks.read(self.name, whole, columns.prompts(self.columns))
            yield from self._table(table, total)

    def _parquet(self, file: IO[bytes]) -> Iterator[Row]:
        is_known = columns.known(self.columns)
        with _seekable(file) as whole:
            table, total = parquet.read(self.name, whole, lambda name: self.keeps_cells or is_known(name))
            yield from self._table(table, total)

    def _table(self, table: Table, total: int | None = None) -> Iterator[Row]:
        self.how, self.head = table.how, table.head
        if not table.head:
            return
        taken = columns.taken(self.name, table.head, self.columns)
        if remark := columns.unused(self.name, table.head, {at for _, at in taken}):
            self.tell(remark)
        limits = {name: table.limits.get(at) for name, at in taken} if table.limits else {}
        width, place = len(table.head), 0
        if total is not None:
            self.position = lambda: min(1.0, place / total) if total else 1.0
        for record in table.records:
            place = record.place
            if table.is_typed:
                record.cells = record.cells[:width]  # what stands beside the table is a remark
            if is_empty(record.cells):
                continue
            if not record.problem and any(record.cells[width:]):
                record.problem = (
                    f"it has {len(record.cells):,} cells, and the first line has {width:,}; "
                    "a text with a delimiter in it must be quoted"
                )
            if record.problem:
                yield Row(place, b"", record.cells, Problem("invalid_row", f"{record.problem}.", None, place))
                continue
            yield self._of_record(record, taken, limits, is_typed=table.is_typed)

    def _of_record(
        self, record: Record, taken: list[tuple[str, int]], limits: Mapping[str, int | None], *, is_typed: bool
    ) -> Row:
        given = {
            name: cell
            for name, at in taken
            if at < len(record.cells) and (cell := record.cells[at]) is not None and cell != ""
        }
        try:
            fields = cells.fields(given, limits, is_typed=is_typed)
            return self._row(record.place, {**self.defaults, **fields}, record.cells)
        except cells.BadCell as error:
            problem = Problem(error.code, str(error), error.field, record.place)
            return Row(record.place, b"", record.cells, problem)

    def _row(self, place: int, request: Mapping[str, Any], given: Sequence[Any]) -> Row:
        try:
            return Row(place, _dumped(request), given)
        except UnicodeEncodeError:
            name, byte = next(
                (name, byte)
                for name, value in request.items()
                if (byte := encodings.bad_byte(value if isinstance(value, str) else json.dumps(value, default=str)))
            )
            message = f"{name} holds the byte {byte}, which is not UTF-8; {encodings.HINT}."
            return Row(place, b"", given, Problem("invalid_encoding", message, name, place))

    def _encoding(self, file: IO[bytes]) -> str:
        self.encoding = self.encoding or encodings.detect(self.name, file)
        return self.encoding

    def _encoded(self, file: IO[bytes], encoding: str) -> Iterator[bytes]:
        """Lines as UTF-8. Those that are, pass as they are."""
        beginning = encodings.head(file)
        if encoding in ("utf-8", "utf-8-sig") and (b"\n" in beginning or b"\r" not in beginning):
            for first in file:
                yield first.removeprefix(strict_json.BYTE_ORDER_MARK)
                break
            yield from file
            return
        for line in encodings.lines(file, encoding):
            yield line.encode("utf-8", "surrogateescape")

    def _measure(self, file: IO[bytes]) -> None:
        if self.path != _STDIN and (size := self.path.stat().st_size):
            self.position = lambda: min(1.0, file.tell() / size) if not file.closed else 1.0


def source(
    path: Path,
    form: Form | None,
    columns: Mapping[str, str],
    defaults: Mapping[str, Any],
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Source:
    """Raises WrongOption if the format is not known, or an option does not fit it."""
    for name in columns:
        if name not in FIELDS:
            raise WrongOption(f"--column names the field {name!r}; a request has: {', '.join(FIELDS)}.")
    if path.is_dir():
        raise WrongOption(f"{path} is a folder; name a file in it.")
    found = form or ("lines" if path == _STDIN else EXTENSIONS.get(path.suffix.lower()))
    if found is None:
        known = ", ".join(EXTENSIONS)
        raise WrongOption(
            f"{path} has none of the known endings ({known}); use --format: jsonl, csv, tsv, xlsx, parquet or text."
        )
    if found == "text" and columns:
        raise WrongOption("Plain text has no columns: each line is a prompt.")
    if delimiter is not None and found not in ("csv", "tsv", "lines"):
        raise WrongOption(
            f"--delimiter is for tables as text, and {path} is read as {found}; --format csv makes it one."
        )
    if encoding is not None and found in _BINARY:
        raise WrongOption(f"--encoding is for text, and {path} is read as {found}, which says its own.")
    mark = None if delimiter is None else delimited.mark(delimiter)
    return Source(path, found, columns, defaults, mark, None if encoding is None else encodings.named(encoding))


def _dumped(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request, ensure_ascii=False, default=_as_json, separators=(",", ":")).encode()


def _as_json(value: object) -> object:
    """Converts column types that JSON does not have."""
    return cells.number(value) if isinstance(value, Decimal) else str(value)


def _open(path: Path) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if path == _STDIN else path.open("rb")


@contextmanager
def _seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(file, spool, 1 << 20)
        spool.seek(0)
        yield spool
