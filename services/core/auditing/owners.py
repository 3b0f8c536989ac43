"""Which record an object belongs to, by its name, and which objects of a list belong to none."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model import ids
from services.core.model.errors import NotFound

_ID = "[0-9a-hjkmnp-tv-z]{13}"
MAX_INDEX = 2**31 - 1
MAX_CLAIM = 2**63 - 1
_IMAGE = re.compile(rf"[0-9a-f]{{2}}/[0-9]+/job_({_ID})/([0-9]{{8,10}})-[0-9a-f]{{16}}[^/]*\.(?:png|jpe?g|webp)")
_SHARD = re.compile(
    rf"[0-9a-f]{{2}}/[0-9]+/job_({_ID})/([0-9]{{8,10}})-([0-9]{{1,19}})-[0-9a-f]{{16}}(?:-[0-9]+)?\.tar"
)
_FOLDERS = (  # what must exist for anything below it to belong to it
    ("jobs", re.compile(rf"(?:thumbnails|files)/[0-9]+/job_({_ID})/.+")),
    ("catalogues", re.compile(rf"thumbnails/[0-9]+/catalogue_({_ID})/.+")),
    ("catalogues", re.compile(rf"catalogues/[0-9]+/({_ID})/.+")),
    ("files", re.compile(rf"files/[0-9]+/file-({_ID})")),
    ("uploads", re.compile(rf"uploads/[0-9]+/upload_({_ID})/.+")),
    ("exports", re.compile(rf"exports/[0-9]+/export_({_ID})/.+")),
    ("datasets", re.compile(rf"datasets/[0-9]+/[a-z]+_({_ID})/.+")),
)
# Of a job that has not ended, a worker may still adopt an object that another left, and record it.
_IMAGES = statement("owners.images")("""
SELECT object_key FROM unnest(CAST(:keys AS text[]), CAST(:jobs AS bigint[]), CAST(:indexes AS integer[]))
  AS listed (object_key, job_id, index)
WHERE NOT EXISTS (SELECT FROM jobs WHERE jobs.id = listed.job_id AND jobs.finished_at IS NULL)
  AND NOT EXISTS (SELECT FROM results r WHERE r.job_id = listed.job_id AND r.index = listed.index
                  AND r.object_key = listed.object_key)
""")
# All images of a shard become visible at once, and its name says which is the first, and of which claim: one that is
# open may be about to record it.
_SHARDS = statement("owners.shards")("""
SELECT object_key FROM unnest(CAST(:keys AS text[]), CAST(:jobs AS bigint[]), CAST(:indexes AS integer[]),
                              CAST(:claims AS bigint[])) AS listed (object_key, job_id, index, claim_id)
WHERE NOT EXISTS (SELECT FROM results r WHERE r.job_id = listed.job_id AND r.index = listed.index
                  AND starts_with(r.object_key, listed.object_key || '#'))
  AND NOT EXISTS (SELECT FROM claims c WHERE c.id = listed.claim_id AND c.state = 'open' AND c.expires_at > now())
""")
_GONE = {
    table: statement(f"owners.{table}")(f"""
SELECT object_key FROM unnest(CAST(:keys AS text[]), CAST(:ids AS bigint[])) AS listed (object_key, id)
WHERE NOT EXISTS (SELECT FROM {table} WHERE {table}.id = listed.id)
""")  # noqa: S608  our own text
    for table in ("jobs", "catalogues", "files", "uploads", "exports", "datasets")
}


@dataclass(slots=True)
class Sorted:
    """Keys that no record names, and how many have names that no program gives: these are never touched."""

    orphans: list[str]
    foreign: int


def orphans(connection: Connection, keys: Sequence[str], prefixes: Iterable[str]) -> Sorted:
    """Of objects under this installation's prefixes, those that belong to no record now."""
    images: list[tuple[str, int, int]] = []
    shards: list[tuple[str, int, int, int]] = []
    folders: dict[str, list[tuple[str, int]]] = {}
    foreign = 0
    known = sorted(prefixes, key=len, reverse=True)
    for key in keys:
        name = next((key.removeprefix(prefix) for prefix in known if key.startswith(prefix)), None)
        if name is not None and (found := _image(name)) is not None:
            images.append((key, *found))
        elif name is not None and (place := _shard(name)) is not None:
            shards.append((key, *place))
        elif name is None or (owner := _owner(name)) is None:
            foreign += 1
        else:
            folders.setdefault(owner[0], []).append((key, owner[1]))
    lost: list[str] = []
    if images:
        values = _columns(images, "keys", "jobs", "indexes")
        lost += connection.execute(_IMAGES, values).scalars()
    if shards:
        values = _columns(shards, "keys", "jobs", "indexes", "claims")
        lost += connection.execute(_SHARDS, values).scalars()
    for table, listed in folders.items():
        rows = connection.execute(_GONE[table], {"keys": [i[0] for i in listed], "ids": [i[1] for i in listed]})
        lost += rows.scalars()
    return Sorted(lost, foreign)


def _columns(rows: Sequence[tuple[str | int, ...]], *names: str) -> dict[str, list[str | int]]:
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _image(name: str) -> tuple[int, int] | None:
    """The job and index of an image."""
    found = _IMAGE.fullmatch(name)
    return None if found is None else _place(found)


def _shard(name: str) -> tuple[int, int, int] | None:
    """The job and index of the first image of a shard, and its claim."""
    found = _SHARD.fullmatch(name)
    place = None if found is None else _place(found)
    if found is None or place is None or int(found[3]) > MAX_CLAIM:
        return None
    return *place, int(found[3])


def _place(found: re.Match[str]) -> tuple[int, int] | None:
    job = _number(found[1])
    return None if job is None or int(found[2]) > MAX_INDEX else (job, int(found[2]))


def _owner(name: str) -> tuple[str, int] | None:
    for table, pattern in _FOLDERS:
        if (found := pattern.fullmatch(name)) and (number := _number(found[1])) is not None:
            return table, number
    return None


def _number(letters: str) -> int | None:
    try:
        return ids.parse("", letters, "object")
    except NotFound:
        return None
