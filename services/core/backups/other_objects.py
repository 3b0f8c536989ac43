"""The objects that records name besides images: files, parts of uploads, exports, data sets, published pictures.

They cannot be drawn again, so those that are missing are only listed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.model.errors import ObjectMissing
from services.core.storage.contract import ImageStore

_AT_ONCE = 5_000
_FOLDERS = ("files/", "uploads/", "exports/", "datasets/", "catalogues/")
_TABLES = {  # with their primary keys, in whose order they are read
    "files": ("id",),
    "upload_parts": ("id",),
    "export_files": ("export_id", "path"),
    "dataset_files": ("dataset_id", "path", "since"),
    "catalogue_entries": ("catalogue_id", "item", "variant", "from_version"),
}


def _page(table: str, after: str = "") -> Any:
    names = ", ".join(_TABLES[table])
    return statement(f"other_objects.{table}")(
        f"SELECT object_key, {names} FROM {table} {after} ORDER BY {names} LIMIT :limit"  # noqa: S608  our own text
    )


def _next_page(table: str) -> Any:
    after = ", ".join(f":after_{place}" for place in range(len(_TABLES[table])))
    return _page(table, f"WHERE ({', '.join(_TABLES[table])}) > ({after})")


_FIRST = {table: _page(table) for table in _TABLES}
_NEXT = {table: _next_page(table) for table in _TABLES}
_STILL = {  # and not about to be deleted
    table: statement(f"other_objects.still_{table}")(f"""
SELECT DISTINCT object_key FROM {table} WHERE object_key = ANY(CAST(:keys AS text[]))
  {"AND deleted_at IS NULL" if table == "files" else ""} ORDER BY 1
""")  # noqa: S608  our own text
    for table in _TABLES
}


def missing(database: Database, store: ImageStore, say: Callable[[int], None] = lambda _: None) -> Iterator[str]:
    """The keys that a record names and that are not in the store. `say` hears how many records were read so far."""
    there = {hash(key) for folder in _FOLDERS for key in store.under(folder)}
    read = 0
    for table in _TABLES:
        for keys in _named(database, table):
            read += len(keys)
            say(read)
            lost = [key for key in dict.fromkeys(keys) if hash(key) not in there and not _is_there(store, key)]
            with database.begin_system() as connection:  # those that were not deleted meanwhile
                yield from connection.execute(_STILL[table], {"keys": lost}).scalars() if lost else ()


def _named(database: Database, table: str) -> Iterator[list[str]]:
    """The keys in a table's records, page by page."""
    after: Sequence[Any] = ()
    while True:
        values = {"limit": _AT_ONCE} | {f"after_{place}": value for place, value in enumerate(after)}
        with database.begin_system() as connection:
            rows = connection.execute(_NEXT[table] if after else _FIRST[table], values).all()
        if not rows:
            return
        after = rows[-1][1:]
        yield [row.object_key for row in rows]


def _is_there(store: ImageStore, key: str) -> bool:
    try:
        store.size(key)
    except ObjectMissing:
        return False
    return True
