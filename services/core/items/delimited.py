"""Tables as text: which character separates the cells, and the rows.

A row that cannot be divided into cells costs itself alone: reading goes on with the line after the one where it begins.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from services.core.items.errors import Unreadable, WrongOption
from services.core.items.table import Record, Table, is_empty, named

MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_WORDS = {name: mark for mark, name in MARKS.items()} | {"space": " ", "\\t": "\t"}
_SEP = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)
_SAMPLE_LINES = 50
_LONGEST_CELL = 1 << 20
Known = Callable[[str], bool]


class Lines:
    """Lines with their numbers. Those that were taken last can be put back."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._coming, self._back = lines, list[str]()
        self.number, self.taken = 0, list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._back.pop() if self._back else next(self._coming)
        self.number += 1
        self.taken.append(line)
        return line

    def put_back(self, lines: Iterable[str]) -> None:
        given = list(lines)
        self._back += reversed(given)
        self.number -= len(given)


def mark(given: str) -> str:
    """The character that --delimiter names, by itself or as a word. Raises WrongOption."""
    found = _WORDS.get(given.lower(), given)
    if len(found) != 1 or found in '"\r\n\\':
        raise WrongOption(
            f"--delimiter is {given!r}; it must be one character, or comma, semicolon, tab, pipe or space."
        )
    return found


def read(name: str, lines: Iterator[str], given: str | None, usual: str, is_known: Known) -> Table:
    """The table. `given` separates its cells, else the character of a line `sep=;`, else the one that makes a head with
    known columns, `usual` in doubt. Raises Unreadable if the head cannot be divided into cells."""
    coming = Lines(lines)
    first = next(coming, "")
    said = _SEP.fullmatch(first)
    if not said and first:
        coming.put_back([first])
    sample = list(islice(coming, _SAMPLE_LINES))
    coming.put_back(sample)
    chosen = given or (said[1] if said else _likely(sample, usual, is_known))
    csv.field_size_limit(_LONGEST_CELL)
    # Some programs write a space after each delimiter; a quote behind it then begins a quoted cell.
    spaced = any(re.search(re.escape(chosen) + ' +"', line) for line in sample)
    records = _records(coming, chosen, spaced=spaced and chosen != " ")
    for head in records:
        if not is_empty(head.cells):
            if head.problem:
                raise Unreadable(f"{name}, line {head.place}: {head.problem}.")
            return Table(named(head.cells), records, _how(chosen), chosen)
    return Table([], iter(()), _how(chosen))


def is_head(line: str, is_prompt: Known) -> bool:
    """Whether a first line is the head of a table and no prompt: one of its cells names the column of the prompts."""
    if _SEP.fullmatch(line):
        return True
    return any(is_prompt(cell) for mark in MARKS for cells in _divided([line], mark) for cell in cells)


def _how(chosen: str) -> str:
    return f"{MARKS.get(chosen, 'space' if chosen == ' ' else repr(chosen))}-separated"


def _records(lines: Lines, mark: str, *, spaced: bool) -> Iterator[Record]:
    reader = csv.reader(lines, delimiter=mark, strict=True, skipinitialspace=spaced)
    while True:
        lines.taken.clear()
        begins = lines.number + 1
        try:
            yield Record(begins, next(reader))
        except StopIteration:
            return
        except csv.Error as error:
            first, *rest = lines.taken
            lines.put_back(rest)
            reader = csv.reader(lines, delimiter=mark, strict=True, skipinitialspace=spaced)
            yield Record(begins, [first.rstrip("\r\n")], _reason(str(error)))


def _reason(error: str) -> str:
    if "expected after" in error:
        return 'a quoted text ends before its cell does; a quote inside it must be doubled ("")'
    if "unexpected end" in error or "field larger" in error:
        return "a quoted text begins here and does not end"
    return error


def _likely(sample: list[str], usual: str, is_known: Known) -> str:
    """The mark with which the head has most known columns; of equal ones, the one with which fewest rows are wider than
    the head; else the usual one."""
    scores = {}
    for mark in sorted(MARKS, key=lambda mark: mark != usual):
        rows = [cells for cells in _divided(sample, mark) if not is_empty(cells)] or [[]]
        wide = sum(any(cells[len(rows[0]) :]) for cells in rows)
        alike = sum(len(cells) == len(rows[0]) > 1 for cells in rows)
        scores[mark] = (sum(map(is_known, rows[0])), -wide, alike)
    return max(scores, key=scores.__getitem__)


def _divided(sample: list[str], mark: str) -> list[list[str]]:
    return list(csv.reader(sample, delimiter=mark, skipinitialspace=True))
