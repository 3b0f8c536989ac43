"""A file of items or requests: its format, its encoding, and its rows as the format gives them, one by one.

No line is read to its end if it is longer than LONGEST_LINE, so memory stays bounded whatever the file holds.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeVar

from services.core.items import delimited, encodings
from services.core.items.delimited import Known
from services.core.items.errors import Unreadable
from services.core.items.table import Record, Table, is_empty
from services.core.model import strict_json

Form = Literal[
    "jsonl", "csv", "tsv", "xlsx", "parquet", "text", "lines"
]  # lines: requests, prompts or a table, decided by the first line
EXTENSIONS: dict[str, Form] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".xlsx": "xlsx",
    ".xlsm": "xlsx", ".parquet": "parquet", ".pq": "parquet", ".txt": "lines",
}  # fmt: skip
BINARY = ("xlsx", "parquet")
STDIN = Path("-")
_WATCHED = 1_000  # rows between two looks
_Taken = TypeVar("_Taken")


@dataclass(kw_only=True)
class InputFile:
    """`unit` is what places count: lines, or rows of Parquet and Excel. `title` names the file in errors."""

    path: Path
    form: Form
    title: str = ""
    delimiter: str | None = None
    encoding: str | None = None
    head: Sequence[str] = ()  # the names of the columns, once it is being read
    how: str = ""  # what its format was found to be
    taken: int = 0  # rows, so far
    is_read: bool = False  # to its end
    position: Callable[[], float | None] = lambda: None  # 0..1, once it is being read
    watch: Callable[[], None] | None = None  # called now and then
    tell: Callable[[str], None] = lambda _: None  # takes a remark about the file, for its owner
    opened: IO[bytes] | None = None  # is read from its beginning, and `path` is only its name

    @property
    def total(self) -> int | None:
        """An estimate of the number of rows, from the share of the file that has been read."""
        share = self.position()
        return round(self.taken / share) if share else None

    @property
    def unit(self) -> str:
        return "row" if self.form in BINARY else "line"

    @property
    def name(self) -> str:
        return self.title or ("stdin" if self.path == STDIN else str(self.path))

    @property
    def described(self) -> str:
        """What it was read as: "p.csv was read as semicolon-separated, UTF-16, 5,000 rows"."""
        count = f", {self.taken:,} {'row' if self.taken == 1 else 'rows'}" if self.is_read else ""
        return f"{self.name} was read as {self.how}{count}"

    def counted(self, read: Callable[[IO[bytes]], Iterator[_Taken]]) -> Iterator[_Taken]:
        """What `read` makes of the open file. Raises PressworkError if it cannot be read in its format."""
        self.taken, self.is_read = 0, False
        try:
            with self._open() as file:
                self._measure(file)
                for row in read(file):
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

    def json_lines(self, file: IO[bytes]) -> tuple[Iterator[bytes], str]:
        """The lines of a file of JSON, and their encoding. JSON is never in one that has to be guessed."""
        beginning = encodings.head(file)
        encodings.check_is_text(self.name, beginning)
        encoding = self.encoding or encodings.marked(beginning) or "utf-8"
        return self.encoded(file, encoding), encoding

    def detected(self, file: IO[bytes]) -> str:
        self.encoding = self.encoding or encodings.detect(self.name, file)
        return self.encoding

    def encoded(self, file: IO[bytes], encoding: str) -> Iterator[bytes]:
        """Lines as UTF-8. Those that are, pass as they are."""
        beginning = encodings.head(file)
        if encoding in ("utf-8", "utf-8-sig") and (b"\n" in beginning or b"\r" not in beginning):
            lines = encodings.bounded(self.name, file.readline, b"\n")
            for first in lines:
                yield first.removeprefix(strict_json.BYTE_ORDER_MARK)
                break
            yield from lines
            return
        for line in encodings.lines(self.name, file, encoding):
            yield line.encode("utf-8", "surrogateescape")

    def delimited_table(self, lines: Iterator[str], encoding: str, is_known: Known) -> Table:
        usual = "\t" if self.form == "tsv" else ","
        table = delimited.read(self.name, lines, self.delimiter, usual, is_known)
        table.how += f", {encodings.shown(encoding)}"
        self.delimiter = table.delimiter
        return table

    def records(self, table: Table, total: int | None = None) -> Iterator[Record]:
        """The rows that hold anything. A row that is wider than the head gets its problem."""
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
            yield record

    def _open(self) -> AbstractContextManager[IO[bytes]]:
        if self.opened is not None:
            self.opened.seek(0)
            return nullcontext(self.opened)
        return nullcontext(sys.stdin.buffer) if self.path == STDIN else self.path.open("rb")

    def _measure(self, file: IO[bytes]) -> None:
        if self.opened is None and self.path != STDIN and (size := self.path.stat().st_size):
            self.position = lambda: min(1.0, file.tell() / size) if not file.closed else 1.0


@contextmanager
def seekable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The file, or a copy of what comes through a pipe."""
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(file, spool, 1 << 20)
        spool.seek(0)
        yield spool
