"""Tables as sheets of Excel workbooks (.xlsx), read row by row."""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from services.core import extras
from services.core.items import cells
from services.core.items.errors import Unreadable
from services.core.items.table import Record, Table, is_empty, named
from services.core.model.body import EXACT

_MOST_TEXT, _MOST = 256 << 20, 4 << 30  # bytes
_ESCAPE = re.compile("_x([0-9A-Fa-f]{4})_")


def read(name: str, file: IO[bytes], is_prompt: Callable[[str], bool]) -> tuple[Table, int | None]:
    """The first visible sheet with a column of prompts, or else the first with anything, and about how many rows it
    has. Raises Unreadable."""
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise extras.MissingExtra(extras.sentence("excel", what="An Excel workbook")) from None
    _check_size(name, file)
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError) as error:
        raise Unreadable(f"{name} is no Excel workbook (.xlsx): {error}") from None
    except Exception as error:  # openpyxl raises anything for what a workbook must not hold
        raise Unreadable(f"{name} cannot be read as an Excel workbook: {error}; save it as CSV.") from None
    sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    found = [(sheet, head, rows) for sheet in sheets if (rows := _records(name, sheet)) and (head := _head(rows))]
    if not found:
        return Table([], iter(()), "an Excel workbook"), 0
    sheet, head, rows = next((one for one in found if any(map(is_prompt, one[1]))), found[0])
    how = f"sheet {sheet.title!r} of an Excel workbook" if len(sheets) > 1 else "an Excel workbook"
    limits = dict.fromkeys(range(len(head)), EXACT)
    return Table(head, rows, how, limits=limits, is_typed=True), sheet.max_row


def _check_size(name: str, file: IO[bytes]) -> None:
    """Raises Unreadable for a workbook that would take more memory or time than a real one: its texts are held in
    memory, its sheets are streamed."""
    start = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise Unreadable(f"{name} is no Excel workbook (.xlsx): {error}") from None
    file.seek(start)
    texts = sum(size for part, size in sizes.items() if "worksheets/" not in part)
    if texts > _MOST_TEXT or sum(sizes.values()) > _MOST:
        raise Unreadable(f"{name} unpacks to more than {(_MOST_TEXT if texts > _MOST_TEXT else _MOST) >> 20} MiB.")


def _head(rows: Iterator[Record]) -> list[str]:
    """The names in the first row that is not empty."""
    head = next((row.cells for row in rows if not is_empty(row.cells)), ())
    return named([cells.as_text(cell) for cell in head])


def _records(name: str, sheet: Any) -> Iterator[Record]:
    number = 0
    try:
        for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
            yield Record(number, [_unescaped(value) for value in values])
    except (ValueError, KeyError, SyntaxError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise Unreadable(f"{name}, row {number + 1}: the sheet cannot be read: {error}; save it as CSV.") from None


def _unescaped(value: Any) -> Any:
    """Excel writes a control character of a text as _x000D_."""
    if not isinstance(value, str) or "_x" not in value:
        return value
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), value)
