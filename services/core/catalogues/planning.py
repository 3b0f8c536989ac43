"""What a run has to do: the items of a source against the list of the version before.

The source is read once. An item whose used fields have the same digest as before, under the same definition, keeps its
pictures without a template being applied, and its rows are copied in one statement; only the others are expanded. So a
night's cost is that of reading. Nothing is kept in memory but a few thousand rows.
"""

import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from services.core.catalogues import list_writer, version_list
from services.core.catalogues.definition import Definition
from services.core.catalogues.expansion import Compiled, item_id
from services.core.catalogues.list_writer import Plan, Writer
from services.core.catalogues.photographs import Album, Find
from services.core.catalogues.templates import Inapplicable
from services.core.items.records import Item
from services.core.model.errors import PressworkError, Problem

MAX_PROBLEMS = 100  # of a source's rows, that are kept
_ROWS = 1_000  # between two looks at the clock


class BadSource(PressworkError):
    """The source has rows that are wrong; the published version stays."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        self.problems = list(problems)
        super().__init__(message)


class TooSlow(PressworkError):
    """The plan took longer than it may."""


def make(
    definition: Definition,
    variants: Sequence[Compiled],
    items: Iterable[Item],
    *,
    unit: str,
    previous: Path | None,
    path: Path,
    find: Find | None = None,
    seconds: float = 3600,
) -> Plan:
    """Writes the list of the next version to `path`. `unit`: what the items' places count, lines or rows. `find` is
    needed where a variant redraws photographs; see photographs.py.

    Raises:
        BadSource: rows that are broken, have no id or the id of another one, or there are none.
        TooSlow: it took more than `seconds`.
        BadList: the list of the version before cannot be read.
    """
    with closing(version_list.create(path)) as connection:
        version_list.attach(connection, previous)
        connection.execute("BEGIN")
        album = None if find is None else Album(connection, find)
        writer = Writer(connection, definition, variants, album)
        deadline, together = time.monotonic() + seconds, list_writer.TOGETHER if album else _ROWS
        refused = _Refused(unit)
        for number, item in enumerate(items):
            if not number % together and time.monotonic() > deadline:
                why = "its photographs or templates" if album else "its templates"
                raise TooSlow(f"The plan was given up after {seconds:g} seconds; {why} may take too long.")
            if item.problem is not None:
                refused.add(item.problem)
                continue
            try:
                name = item_id(item.fields.get(definition.id), definition.id)
            except Inapplicable as error:
                refused.add(Problem(error.code, str(error), definition.id, item.place))
                continue
            writer.add(name, item)
        writer.complete()
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
