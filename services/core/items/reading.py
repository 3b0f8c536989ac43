"""Reads prompts from JSONL, tables and plain text, from files or stdin, as requests one by one.

Only the file's format is checked here. The server checks fields, and each row keeps its place so that the server's
errors can name it. A row that cannot be read carries its problem, and the rows after it are read. A line that is
already a request is passed on unchanged.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import IO, Any

from services.core.items import cells, columns, delimited, encodings, parquet, workbooks
from services.core.items.columns import FIELDS
from services.core.items.errors import WrongOption
from services.core.items.input_file import BINARY, EXTENSIONS, STDIN, Form, InputFile, seekable
from services.core.items.table import Record, Table
from services.core.model import requests, strict_json, suggestions
from services.core.model.body import with_defaults
from services.core.model.errors import Problem


@dataclass(frozen=True, slots=True)
class Row:
    """One request as a line of JSON, without a line end, and its place in the source. `cells`: what stood there.
    `problem`: why it cannot be a request."""

    place: int
    line: bytes
    cells: Sequence[Any] = ()
    problem: Problem | None = None


@dataclass(kw_only=True)
class Source(InputFile):
    """A file of requests."""

    columns: Mapping[str, str]  # field of a request, or name of metadata -> name in the source
    metadata: Sequence[str] | None = None  # the columns that become metadata beside those; None: all that are no fields
    defaults: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""  # what becomes of columns that are no fields, once it is being read
    keeps_cells: bool = False  # every column of a Parquet file is read, not only those of fields

    def rows(self) -> Iterator[Row]:
        """Raises PressworkError if the file cannot be read in its format."""
        reader = {
            "jsonl": self._jsonl, "csv": self._csv, "tsv": self._csv, "xlsx": self._xlsx, "parquet": self._parquet,
            "text": self._text, "lines": self._lines,
        }  # fmt: skip
        return self.counted(reader[self.form])

    def _lines(self, file: IO[bytes]) -> Iterator[Row]:
        if encodings.head(file).startswith(b"PK\x03\x04"):
            self.form = "xlsx"
            yield from self._xlsx(file)
            return
        encoding = self.detected(file)
        coming = self.encoded(file, encoding)
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
        elif self._is_mapped:
            raise WrongOption(
                f"{self.name} looks like plain text, which has no columns; "
                "--format says what it is: csv, tsv, xlsx or parquet."
            )
        else:
            yield from self._prompts(chain(head, coming), encoding)

    def _jsonl(self, file: IO[bytes]) -> Iterator[Row]:
        yield from self._requests(*self.json_lines(file))

    def _text(self, file: IO[bytes]) -> Iterator[Row]:
        encoding = self.detected(file)
        yield from self._prompts(self.encoded(file, encoding), encoding)

    def _requests(self, lines: Iterable[bytes], encoding: str) -> Iterator[Row]:
        self.how, self.head = f"JSON requests, {encodings.shown(encoding)}", ("request",)
        for number, line in enumerate(lines, 1):
            if text := line.strip():
                yield Row(number, self._merged(text), (text.decode(errors="replace"),) if self.keeps_cells else ())

    def _merged(self, line: bytes) -> bytes:
        """The line with the defaults. A line that is not a JSON object is passed on: the server reports the error."""
        if not self.defaults and not self._is_mapped:
            return line
        try:
            value = strict_json.loads(line)
        except strict_json.BadJson:
            return line
        if not isinstance(value, dict):
            return line
        return _dumped(with_defaults(self.defaults, self._renamed(value) if self._is_mapped else value))

    @property
    def _is_mapped(self) -> bool:
        """Whether --column or --metadata says what becomes of a name. Without them, a line of JSON is a request as it
        stands, and a name that is no field is an error."""
        return bool(self.columns or self.metadata)

    def _renamed(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The fields and metadata of a request whose names are as --column and --metadata say."""
        found = {name: value[column] for name, column in self.columns.items() if name in FIELDS and column in value}
        found |= {name: value[name] for name in FIELDS if name in value and name not in self.columns}
        used = {self.columns.get(name, name) for name in FIELDS}
        kept = {name: column for name, column in self.columns.items() if name not in FIELDS and column in value}
        others = [name for name in value if name not in used] if self.metadata is None else self.metadata
        taken = {*kept.values(), *self.columns}
        kept |= {name: name for name in others if name in value and name not in taken}
        if kept:
            given = found.get("metadata")
            more = cells.metadata({name: value[column] for name, column in kept.items()})
            found["metadata"] = {**given, **more} if isinstance(given, dict) else more
        return found

    def _prompts(self, lines: Iterable[bytes], encoding: str) -> Iterator[Row]:
        self.how, self.head = f"prompts, one a line, {encodings.shown(encoding)}", ("prompt",)
        for number, line in enumerate(lines, 1):
            prompt = line.decode(errors="surrogateescape").strip()
            if prompt:
                yield self._row(number, {**self.defaults, "prompt": prompt}, (prompt,))

    def _csv(self, file: IO[bytes]) -> Iterator[Row]:
        encoding = self.detected(file)
        yield from self._delimited(encodings.lines(self.name, file, encoding), encoding)

    def _delimited(self, lines: Iterator[str], encoding: str) -> Iterator[Row]:
        yield from self._table(self.delimited_table(lines, encoding, columns.known(self.columns)))

    def _xlsx(self, file: IO[bytes]) -> Iterator[Row]:
        with seekable(file) as whole:
            table, total = workbooks.read(self.name, whole, columns.prompts(self.columns))
            yield from self._table(table, total)

    def _parquet(self, file: IO[bytes]) -> Iterator[Row]:
        with seekable(file) as whole:
            table, total = parquet.read(self.name, whole, self._is_read)
            yield from self._table(table, total)

    def _is_read(self, column: str, is_unfit: bool) -> bool:
        """Whether a column of a Parquet file is needed."""
        if self.keeps_cells or columns.known(self.columns)(column):
            return True
        return not is_unfit if self.metadata is None else columns.plain(column) in map(columns.plain, self.metadata)

    def _table(self, table: Table, total: int | None = None) -> Iterator[Row]:
        self.how, self.head = table.how, table.head
        if not table.head:
            return
        taken = columns.taken(self.name, table.head, self.columns)
        kept = columns.metadata(self.name, table.head, self.columns, self.metadata, taken, table.unfit)
        self.remark = columns.remark(self.name, table.head, {at for _, at in taken}, kept)
        if self.remark:
            self.tell(self.remark)
        limits = {name: table.limits.get(at) for name, at in taken} if table.limits else {}
        for record in self.records(table, total):
            if record.problem:
                problem = Problem("invalid_row", f"{record.problem}.", None, record.place)
                yield Row(record.place, b"", record.cells, problem)
                continue
            yield self._of_record(record, taken, kept, limits, is_typed=table.is_typed)

    def _of_record(
        self,
        record: Record,
        taken: list[tuple[str, int]],
        kept: list[tuple[str, int]],
        limits: Mapping[str, int | None],
        *,
        is_typed: bool,
    ) -> Row:
        try:
            fields = cells.fields(_cells(record, taken), limits, is_typed=is_typed)
            if metadata := cells.metadata(_cells(record, kept)) if kept else None:
                fields["metadata"] = _joined(fields.get("metadata"), metadata)
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


def _cells(record: Record, places: list[tuple[str, int]]) -> dict[str, Any]:
    """The cells at these places that hold anything."""
    return {
        name: cell
        for name, at in places
        if at < len(record.cells) and (cell := record.cells[at]) is not None and cell != ""
    }


def _joined(given: Any, metadata: Mapping[str, Any]) -> Any:
    """The metadata of a column of that name, and those of other columns. Raises BadCell."""
    if isinstance(given, dict):
        if both := sorted(given.keys() & metadata.keys()):
            message = f"{both[0]} stands in the column metadata and in a column of its own; leave out one of them."
            raise cells.BadCell("invalid_value", message, "metadata")
        metadata = {**given, **metadata}
    elif given is not None:
        return given  # no object: the server says so
    size = len(requests.metadata_text(metadata).encode("utf-8", "surrogateescape"))
    if size > requests.METADATA_LIMIT:
        message = (
            f"The columns that become metadata hold {size:,} bytes, and a request keeps {requests.METADATA_LIMIT:,}; "
            "choose columns with --metadata."
        )
        raise cells.BadCell("too_long", message, "metadata")
    return metadata


def source(
    path: Path,
    form: Form | None,
    columns: Mapping[str, str],
    defaults: Mapping[str, Any],
    *,
    metadata: Sequence[str] | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    opened: IO[bytes] | None = None,
) -> Source:
    """Raises WrongOption if the format is not known, or an option does not fit it. What is `opened` already has `path`
    as its name alone, which no file of this machine is looked for by."""
    for name in columns:
        if name not in FIELDS and (meant := suggestions.misspelt(name, FIELDS)):
            raise WrongOption(f"--column names {name!r}, which is no field; did you mean {meant}?")
    if opened is None and path.is_dir():
        raise WrongOption(f"{path} is a folder; name a file in it.")
    found = form or ("lines" if opened is None and path == STDIN else EXTENSIONS.get(path.suffix.lower()))
    if found is None:
        known = ", ".join(EXTENSIONS)
        raise WrongOption(
            f"{path} has none of the known endings ({known}); use --format: jsonl, csv, tsv, xlsx, parquet or text."
        )
    if found == "text" and (columns or metadata):
        raise WrongOption("Plain text has no columns: each line is a prompt.")
    if delimiter is not None and found not in ("csv", "tsv", "lines"):
        raise WrongOption(
            f"--delimiter is for tables as text, and {path} is read as {found}; --format csv makes it one."
        )
    if encoding is not None and found in BINARY:
        raise WrongOption(f"--encoding is for text, and {path} is read as {found}, which says its own.")
    mark = None if delimiter is None else delimited.mark(delimiter)
    code = None if encoding is None else encodings.named(encoding)
    return Source(
        path=path, form=found, columns=columns, metadata=metadata, defaults=defaults, delimiter=mark, encoding=code,
        opened=opened,
    )  # fmt: skip


def _dumped(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request, ensure_ascii=False, default=_as_json, separators=(",", ":")).encode()


def _as_json(value: object) -> object:
    """Converts column types that JSON does not have."""
    return cells.number(value) if isinstance(value, Decimal) else str(value)
