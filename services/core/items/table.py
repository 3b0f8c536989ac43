"""A table as its format gives it: the names of its columns, then its rows one by one, with their places."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Record:
    """One row: its line or number, and its cells. `problem`: why it could not be divided into cells."""

    place: int
    cells: Sequence[Any]
    problem: str = ""


@dataclass(slots=True)
class Table:
    """`delimiter`: what separates its cells, if it is text. `limits`: by column, from where on its floats may have
    rounded a whole number. `is_typed`: a cell may be a number because a spreadsheet stores what looks like one so.
    `unfit`: the columns whose cells are no single values."""

    head: Sequence[str]
    records: Iterator[Record]
    how: str
    delimiter: str = ","
    limits: Mapping[int, int] = field(default_factory=dict)
    is_typed: bool = False
    unfit: frozenset[int] = frozenset()


def named(head: Sequence[str]) -> list[str]:
    """The names of the columns, without those at the end that have none."""
    names = list(head)
    while names and not names[-1].strip():
        names.pop()
    return names


def is_empty(cells: Sequence[Any]) -> bool:
    """Whether no cell holds anything but spaces."""
    return not any(cell is not None and cell != "" and not (isinstance(cell, str) and cell.isspace()) for cell in cells)
