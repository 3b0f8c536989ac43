"""The objects that records name besides images: files, parts of uploads, exports, data sets, catalogues' pictures and
manifests. Those that are missing are found, each with whose it is; `remedies` says what brings it back.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.model.errors import ObjectMissing
from services.core.storage.contract import ImageStore

_AT_ONCE = 5_000
_FOLDERS = ("files/", "uploads/", "exports/", "datasets/", "catalogues/")
_MANIFESTS = """(SELECT catalogue_id, version, name, file->>0 AS object_key
  FROM catalogue_versions CROSS JOIN LATERAL jsonb_each(manifests) AS each (name, file)) listed"""
_SOURCES = {  # each with its primary key, in whose order it is read
    "files": ("files", ("id",)),
    "upload_parts": ("upload_parts", ("id",)),
    "export_files": ("export_files", ("export_id", "path")),
    "dataset_files": ("dataset_files", ("dataset_id", "path", "since")),
    "catalogue_entries": ("catalogue_entries", ("catalogue_id", "item", "variant", "from_version")),
    "catalogue_manifests": (_MANIFESTS, ("catalogue_id", "version", "name")),
}
# Whose an object is, unless that is about to be deleted. `number`: the owner's id; `name`: what people call it; `part`:
# what of it, such as an item; `is_now`: readers see it now.
_OWNERS = {
    "files": """
SELECT object_key, tenant_id, id AS number, filename AS name, purpose AS part, job_id, true AS is_now FROM files
WHERE deleted_at IS NULL""",
    "upload_parts": """
SELECT object_key, p.tenant_id, u.id AS number, u.filename AS name, NULL AS part, NULL::bigint AS job_id, true AS is_now
FROM upload_parts p JOIN uploads u ON u.id = p.upload_id WHERE u.state = 'pending'""",
    "export_files": """
SELECT object_key, f.tenant_id, e.id AS number, e.format AS name, path AS part, e.job_id, true AS is_now
FROM export_files f JOIN exports e ON e.id = f.export_id
WHERE (e.expires_at IS NULL OR e.expires_at > now()) AND e.state IN ('queued', 'running', 'completed')""",
    "dataset_files": """
SELECT object_key, d.tenant_id, d.id AS number, d.name, path AS part, NULL::bigint AS job_id, true AS is_now
FROM dataset_files f JOIN datasets d ON d.id = f.dataset_id WHERE d.deleted_at IS NULL""",
    "catalogue_entries": """
SELECT object_key, c.tenant_id, c.id AS number, c.name, item AS part, NULL::bigint AS job_id,
  c.published >= from_version AND (until_version IS NULL OR c.published < until_version) AS is_now
FROM catalogue_entries e JOIN catalogues c ON c.id = e.catalogue_id WHERE c.deleted_at IS NULL""",
    "catalogue_manifests": f"""
SELECT object_key, c.tenant_id, c.id AS number, c.name, listed.version::text AS part, NULL::bigint AS job_id,
  c.published = listed.version AS is_now
FROM {_MANIFESTS} JOIN catalogues c ON c.id = catalogue_id WHERE c.deleted_at IS NULL""",  # noqa: S608  our own text
}


def _page(source: str, after: str = "") -> Any:
    origin, key = _SOURCES[source]
    names = ", ".join(key)
    return statement(f"other_objects.{source}")(
        f"SELECT object_key, {names} FROM {origin} {after} ORDER BY {names} LIMIT :limit"  # noqa: S608  our own text
    )


def _next_page(source: str) -> Any:
    key = _SOURCES[source][1]
    after = ", ".join(f":after_{place}" for place in range(len(key)))
    return _page(source, f"WHERE ({', '.join(key)}) > ({after})")


_FIRST = {source: _page(source) for source in _SOURCES}
_NEXT = {source: _next_page(source) for source in _SOURCES}
_OWNER = {
    source: statement(f"other_objects.owner_of_{source}")(f"""
SELECT DISTINCT owned.*, t.name AS tenant FROM ({owners}) owned JOIN tenants t ON t.id = owned.tenant_id
WHERE object_key = ANY(CAST(:keys AS text[])) ORDER BY object_key, number, part
""")  # noqa: S608  our own text
    for source, owners in _OWNERS.items()
}


@dataclass(frozen=True, slots=True)
class Gone:
    """An object that is missing, and a record that names it. `source` is one of the tables above; `number` and `name`
    are its owner's; `part`, what of the owner it is."""

    object_key: str
    source: str
    tenant_id: int
    tenant: str
    number: int
    name: str
    part: str | None
    job_id: int | None
    is_now: bool


def missing(database: Database, store: ImageStore, say: Callable[[int], None] = lambda _: None) -> Iterator[Gone]:
    """What a record names and what is not in the store. `say` hears how many records were read so far."""
    there = {hash(key) for folder in _FOLDERS for key in store.under(folder)}
    read = 0
    for source in _SOURCES:
        for keys in _named(database, source):
            read += len(keys)
            say(read)
            lost = [key for key in dict.fromkeys(keys) if hash(key) not in there and not _is_there(store, key)]
            if lost:
                with database.begin_system() as connection:  # those that were not deleted meanwhile
                    rows = connection.execute(_OWNER[source], {"keys": lost}).mappings().all()
                yield from (Gone(source=source, **row) for row in rows)


def _named(database: Database, source: str) -> Iterator[list[str]]:
    """The keys in a source's records, page by page."""
    after: Sequence[Any] = ()
    while True:
        values = {"limit": _AT_ONCE} | {f"after_{place}": value for place, value in enumerate(after)}
        with database.begin_system() as connection:
            rows = connection.execute(_NEXT[source] if after else _FIRST[source], values).all()
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
