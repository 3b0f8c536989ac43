"""Files of requests that a form brings: read row by row as `presswork submit` reads them, however large they are."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from services.api.body import streaming
from services.core.items import input_file, reading, unpacked
from services.core.jobs.submissions import Submission
from services.core.model import requests
from services.dashboard.asked import Asked

FIRST = 10
_CHUNK = 1 << 20
# The readers' sentences name options of the command.
_WORDS = (
    ("--format: jsonl, csv, tsv, xlsx, parquet or text", "one of them"),
    ("--format csv makes it one", "name it .csv"),
    ("--column ", "under Columns "),
    ("--encoding", "Encoding"),
    ("--delimiter", "Delimiter"),
)


class Upload:
    """`file` lies on this machine; `name` is the sender's."""

    def __init__(self, name: str, file: IO[bytes], asked: Asked, most_lines: int) -> None:
        """Raises WrongOption or Unreadable: it is no such file, or too large to unpack; SubmissionError: a line is."""
        self._source = reading.source(
            Path(name), None, asked.columns or {}, asked.fields,
            delimiter=asked.delimiter, encoding=asked.encoding, opened=file,
        )  # fmt: skip
        unpacked.check(name, file)
        if file.read(4) not in (b"PK\x03\x04", b"PAR1"):
            file.seek(0)
            meter = streaming.LineMeter(most_lines)
            while chunk := file.read(_CHUNK):
                meter.feed(chunk)

    @property
    def how(self) -> str:
        """What it was found to be, once it was read, and what becomes of columns that are no fields."""
        return f"Read as {self._source.how}" + (f"; {said(self._source.remark)}" if self._source.remark else "")

    def fill(self, submission: Submission) -> None:
        """Adds every row, until there are as many problems as are reported. Raises Unreadable."""
        for row in self._source.rows():
            if submission.has_too_many_problems:
                return
            if row.problem is None:
                submission.add_line(row.place, row.line)
            else:
                submission.refuse(row.problem)

    def first(self) -> list[dict[str, Any]]:
        """The first requests, of a file in which nothing is wrong."""
        return list(islice(self._requests(), FIRST))

    def _requests(self) -> Iterator[dict[str, Any]]:
        for row in self._source.rows():
            found = requests.read_plain(row.line)
            yield json.loads(row.line) if found is None else found.model_dump(exclude_unset=True)


def is_binary(name: str) -> bool:
    """Whether places in a file of that name are rows, not lines."""
    return input_file.EXTENSIONS.get(Path(name).suffix.lower()) in input_file.BINARY


def said(sentence: str) -> str:
    """What a reader of files says, in the words of the form."""
    for option, words in _WORDS:
        sentence = sentence.replace(option, words)
    return sentence
