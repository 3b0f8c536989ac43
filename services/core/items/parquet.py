"""Tables as Parquet files."""

from collections.abc import Callable, Iterator
from typing import IO, Any

from services.core import extras
from services.core.items.errors import Unreadable
from services.core.items.table import Record, Table

_EXACT = {"halffloat": 2**11, "float": 2**24, "double": 2**53}  # pyarrow's names of its types
_ROWS = 4096


def read(name: str, file: IO[bytes], is_wanted: Callable[[str, bool], bool]) -> tuple[Table, int]:
    """The table with the columns that are wanted, and the number of its rows. `is_wanted` is told a column's name and
    whether its cells are no single values. Raises Unreadable."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise extras.MissingExtra("Parquet needs pyarrow: pip install 'presswork[cli]'.") from None
    try:
        found = parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(f"{name} is no Parquet file: {_first_line(error)}") from None
    schema = found.schema_arrow
    limits = {at: _EXACT[str(entry.type)] for at, entry in enumerate(schema) if str(entry.type) in _EXACT}
    types = pa.types
    unfit = frozenset(
        at for at, entry in enumerate(schema)
        if types.is_nested(entry.type) or types.is_binary(entry.type) or types.is_large_binary(entry.type)
        or types.is_fixed_size_binary(entry.type)
    )  # fmt: skip

    def is_read(column: str) -> bool:
        return is_wanted(column, schema.get_field_index(column) in unfit)

    table = Table(schema.names, _records(name, found, is_read), "Parquet", limits=limits, unfit=unfit)
    return table, found.metadata.num_rows


def _records(name: str, found: Any, is_wanted: Callable[[str], bool]) -> Iterator[Record]:
    """The rows, with None for the cells of columns that are not wanted."""
    names = found.schema_arrow.names
    chosen = [column for column in names if is_wanted(column)]
    number = 0
    for batch in _batches(name, found, chosen):
        try:
            columns = {
                column: batch.column(at).to_pylist(maps_as_pydicts="strict")
                for at, column in enumerate(batch.schema.names)
            }
        except KeyError:
            raise Unreadable(f"{name} has a map with a repeated key.") from None
        except (ValueError, OverflowError) as error:  # a time that Python has not; a text that is not UTF-8
            raise Unreadable(f"{name}, behind row {number:,}: {error}") from None
        absent = [None] * batch.num_rows
        for cells in zip(*(columns.get(column, absent) for column in names), strict=True):
            number += 1
            yield Record(number, cells)


def _batches(name: str, found: Any, chosen: list[str]) -> Iterator[Any]:
    """Raises Unreadable for a file that is damaged, which pyarrow tells by errors of many kinds."""
    try:
        yield from found.iter_batches(_ROWS, columns=chosen)
    except (ValueError, LookupError, OSError, RuntimeError, MemoryError) as error:
        raise Unreadable(f"{name} is damaged: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
