"""`--skip-bad`: the rows that are wrong go to a file, with their places and reasons, and the others are submitted."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.cli import show
from services.cli.checking import Checker
from services.cli.exits import Usage
from services.core.items.reading import Row, Source
from services.core.model.errors import Problem
from services.core.model.file_names import PART

LEADING = ("line", "column", "reason")
_SHOWN = 10


class Rejects:
    """Writes the file, which gets its name when the submission has succeeded or nothing was good. It holds the original
    cells behind the reason, so it can be corrected and submitted. A context manager."""

    def __init__(self, path: Path, source: Source, *, replace: bool) -> None:
        """Raises Usage if there is such a file, unless this may `replace` it: it may hold somebody's corrections."""
        if path.exists() and (not replace or path.samefile(source.path)):
            raise Usage(f"{path} exists already; move it away, or name another file with --skip-bad.")
        self.count = 0
        self.first: list[dict[str, Any]] = []  # problems, to be shown
        self._path, self._source = path, source
        self._part = path.with_name(path.name + PART)
        self._file = self._part.open("w", encoding="utf-8-sig", newline="")  # with the mark that Excel looks for
        self._own = 0  # cells at the beginning of each row that a former run has written
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def good(self, rows: Iterable[Row], checker: Checker) -> Iterator[Row]:
        """The rows without a problem."""
        for row in rows:
            found = checker.problems(row)
            if found:
                self.add(row, found)
            else:
                yield row

    def add(self, row: Row, problems: Sequence[Problem]) -> None:
        if self._writer is None:
            self._begin()
        self.count += 1
        if len(self.first) < _SHOWN:
            shown = [{"param": p.param, "code": p.code, "message": p.message} for p in problems]
            self.first += [{self._source.unit: row.place, **entry} for entry in shown]
        names = ", ".join(dict.fromkeys(self._column(found.param) for found in problems if found.param))
        reasons = " ".join(found.message for found in problems)
        cells = [*row.cells[self._own :]]
        if row.problem is not None and row.problem.code == "invalid_row" and len(row.cells) == 1:
            # A line that was not divided into cells stands behind the columns, so that it is no prompt.
            cells = [*[""] * len(self._source.head[self._own :]), row.cells[0]]
        self._writer.writerow([row.place, names, reasons, *map(_cell, cells)])

    def keep(self) -> None:
        """Gives the file its name, if it holds a row, and says so."""
        self._file.close()
        if self.count:
            self._part.replace(self._path)
            show.problems(self.first)
        words = "1 bad row was" if self.count == 1 else f"{self.count:,} bad rows were"
        show.say(
            f"{words} skipped; {self._path} holds {'it' if self.count == 1 else 'them'}"
            if self.count
            else "no row was bad"
        )

    def _begin(self) -> None:
        head = list(self._source.head)
        if tuple(head[: len(LEADING)]) == LEADING:
            self._own = len(LEADING)
        self._writer = csv.writer(self._file, delimiter=self._source.delimiter or ",")
        self._writer.writerow([*LEADING, *head[self._own :]])

    def _column(self, param: str) -> str:
        """The column of a field, by its name in the source."""
        name = param.partition(".")[0]
        return self._source.columns.get(name, name)


def _cell(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return "" if value is None else str(value).encode("utf-8", "replace").decode()
