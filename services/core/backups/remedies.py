"""What brings back objects other than images: exports are written again, and a catalogue's pictures copied again from
its job's images. Of anything else a sentence says what a person does: files came from people, and the versions of data
sets and catalogues are published by them.
"""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.core.backups.other_objects import Gone
from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.exports import exports, records
from services.core.exports.options import ExportRequest
from services.core.files import files, uploads
from services.core.model import ids
from services.core.model.errors import Conflict, IdempotencyGone, NotFound, QuotaExceeded
from services.core.storage.contract import ImageStore

_NAMED = 20  # items that a sentence names
_CLAIM = 0  # no worker's: a copy whose key is taken by other bytes is refused, and not given a key of its own
_DRAWN = statement("remedies.drawn")("""
SELECT DISTINCT ON (e.object_key) e.object_key AS target, e.sha256, e.bytes, r.object_key AS source
FROM catalogue_entries e JOIN results r ON r.job_id = e.job_id AND r.index = e.index AND r.sha256 = e.sha256
WHERE e.object_key = ANY(CAST(:keys AS text[])) ORDER BY e.object_key
""")


@dataclass(slots=True)
class Loss:
    """One thing that lacks objects. `made_again`: what takes their place, such as another export; otherwise `todo` says
    what a person does about it."""

    tenant: str
    thing: str
    keys: list[str]
    made_again: str | None = None
    todo: str | None = None


def losses(database: Database, store: ImageStore, gone: Iterable[Gone]) -> list[Loss]:
    """What is missing, by what it belongs to. Begins the exports that can be written again, each once, and copies the
    catalogues' pictures whose images are there."""
    groups: dict[tuple[str, int, bool, str], list[Gone]] = {}
    for one in gone:
        apart = (one.part or "") if one.source == "catalogue_manifests" else ""
        groups.setdefault((one.source, one.number, one.is_now, apart), []).append(one)
    return [loss for group in groups.values() for loss in _losses(database, store, group)]


def _losses(database: Database, store: ImageStore, group: list[Gone]) -> Iterable[Loss]:
    copied = _copied(database, store, group) if group[0].source == "catalogue_entries" else set()
    for is_copied in (True, False):
        part = [one for one in group if (one.object_key in copied) == is_copied]
        if not part:
            continue
        thing, todo = _SAY[part[0].source](part)
        made_again = "copied again from its job's images" if is_copied else None
        if part[0].source == "export_files":
            made_again = _export_again(database, part[0])
        keys = sorted({one.object_key for one in part})
        yield Loss(part[0].tenant, thing, keys, made_again, None if made_again else todo)


def _copied(database: Database, store: ImageStore, group: list[Gone]) -> set[str]:
    """The keys that are there again, each with the bytes that its entry names."""
    with database.begin_system() as connection:
        drawn = connection.execute(_DRAWN, {"keys": sorted({one.object_key for one in group})}).all()
    copied = set()
    for row in drawn:
        to = {"sha256": bytes(row.sha256), "size": row.bytes, "claim_id": _CLAIM}
        if store.copy_new(row.source, row.target, **to) == row.target:
            copied.add(row.target)
    return copied


def _export_again(database: Database, lost: Gone) -> str | None:
    """An export of the same job with the same options; the same one if it is asked for again."""
    key = f"backup-check/{records.public_id(lost.number)}"
    try:
        with database.begin_system() as connection:
            export = records.find(connection, lost.tenant_id, lost.number)
            asked = ExportRequest(format=export.format, options=export.options)
            made, _ = exports.create(
                connection, export.tenant_id, export.job_id, asked, base_url=export.base_url, key=key
            )
    except (Conflict, IdempotencyGone, NotFound, QuotaExceeded):
        return None
    return f"written again as {records.public_id(made)}"


def _file(group: list[Gone]) -> tuple[str, str]:
    first = group[0]
    name = f"{files.public_id(first.number)} ({first.name})"
    if first.part == "vision":
        return f"picture {name}", "upload it again, and submit what begins with it again: its images fail without it"
    if first.part == "batch_output":
        job = "its batch's job" if first.job_id is None else ids.public_job(first.job_id)
        return f"batch output {name}", f"its images are in {job}: `presswork pull` downloads them with their records"
    return f"batch input {name}", "upload it again, and create the batches again that name it and have not begun"


def _upload(group: list[Gone]) -> tuple[str, str]:
    return f"upload {uploads.public_id(group[0].number)} ({group[0].name})", "begin the upload again"


def _export(group: list[Gone]) -> tuple[str, str]:
    first = group[0]
    thing = f"export {records.public_id(first.number)} of {ids.public_job(first.job_id or 0)}"
    return thing, "it could not be written again: its job's images are gone, or its tenant's bytes are used up"


def _dataset(group: list[Gone]) -> tuple[str, str]:
    name = group[0].name
    todo = f"create it under another name, from what `presswork dataset show {shlex.quote(name)}` lists, and export it"
    return f"data set {name}", todo


def _pictures(group: list[Gone]) -> tuple[str, str]:
    first, items = group[0], sorted({one.part or "" for one in group})
    if not first.is_now:
        return (
            f"versions of the catalogue {first.name} that are not published",
            "do not publish them: they lack pictures",
        )
    more = "" if len(items) <= _NAMED else f" and {len(items) - _NAMED:,} more"
    todo = f"its images are gone too; change these items' data, and the next run draws them: {' '.join(items[:_NAMED])}"
    return f"catalogue {first.name}, published", todo + more


def _manifest(group: list[Gone]) -> tuple[str, str]:
    first = group[0]
    thing = f"manifest of version {first.part} of the catalogue {first.name}"
    if not first.is_now:
        return thing, "do not publish it: its readers would find no list"
    return thing, "publish another version: the next run's, or one before with `presswork catalogue rollback`"


_SAY: dict[str, Callable[[list[Gone]], tuple[str, str]]] = {
    "files": _file,
    "upload_parts": _upload,
    "export_files": _export,
    "dataset_files": _dataset,
    "catalogue_entries": _pictures,
    "catalogue_manifests": _manifest,
}
