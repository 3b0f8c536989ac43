"""How large a workbook or Parquet file becomes when it is read: for those who read the files of strangers."""

import zipfile
from typing import IO

from services.core.items.errors import Unreadable

MOST_BYTES = 256 << 20  # of a workbook; of the largest row group of Parquet, which is read as one piece


def check(name: str, file: IO[bytes]) -> None:
    """Raises Unreadable if the file is a workbook or Parquet that needs more memory than is given to it. What cannot
    be read at all is left to its reader, and so is any other file."""
    file.seek(0)
    beginning = file.read(4)
    file.seek(0)
    size = _workbook(file) if beginning == b"PK\x03\x04" else _parquet(file) if beginning == b"PAR1" else 0
    file.seek(0)
    if size > MOST_BYTES:
        what = "a row group has " if beginning == b"PAR1" else ""
        raise Unreadable(
            f"{name} is too large: {what}{size >> 20:,} MB unpacked, and {MOST_BYTES >> 20} MB are read here; "
            "`presswork submit` takes it."
        )


def _workbook(file: IO[bytes]) -> int:
    try:
        with zipfile.ZipFile(file) as book:
            return sum(part.file_size for part in book.infolist())
    except zipfile.BadZipFile:
        return 0


def _parquet(file: IO[bytes]) -> int:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return 0
    try:
        found = parquet.ParquetFile(file).metadata
    except pa.ArrowException:
        return 0
    groups = [found.row_group(at) for at in range(found.num_row_groups)]
    return max(
        (sum(group.column(at).total_uncompressed_size for at in range(group.num_columns)) for group in groups),
        default=0,
    )
