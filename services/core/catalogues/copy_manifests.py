"""The two files of ours at a place that a version is copied to: a manifest of its pictures, and the pointer to it."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from services.core.catalogues import copies, entries
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.copies import Copy
from services.core.catalogues.copy_names import MANIFESTS, POINTER
from services.core.catalogues.destinations import Destination
from services.core.catalogues.entries import Entry
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.model.errors import ObjectMissing
from services.core.storage.kept_file import KeptFile
from services.core.storage.other_bucket import OtherBucket

_PAGE = 5_000


def media_type(entry: Entry) -> str:
    return f"image/{entry.request.get('output_format', 'png')}"


def write(
    bucket: OtherBucket, at: Destination, catalogue: Catalogue, owner: dict[str, str], lease: Lease
) -> tuple[str, bytes]:
    """Writes the manifest. Returns its name and the pointer to it. The manifest's bytes are a part of its name, so what
    the pointer names until it moves stays as it is."""
    digest, images = hashlib.sha256(), 0
    with tempfile.TemporaryFile() as file:
        for row in _rows(at, catalogue, lease):
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            digest.update(line)
            file.write(line)
            images += 1
        size = file.tell()
        file.seek(0)
        name = f"{MANIFESTS}/{at.version:08d}-{digest.hexdigest()}.jsonl"
        with lease.begin() as connection:
            copies.put(connection, at, [Copy(name, "", "", at.rule, digest.digest())])
        bucket.put(at.key(name), KeptFile(file, lease.keep), "application/x-ndjson", owner)  # type: ignore[arg-type]
    pointer = {
        "catalogue": catalogue.name,
        "version": at.version,
        "images": images,
        "manifest": {"object_key": at.key(name), "sha256": digest.hexdigest(), "bytes": size},
    }
    crash_point("copy.listed")
    return name, json.dumps(pointer).encode()


def version_of(bucket: OtherBucket, at: Destination) -> int | None:
    """The version that the pointer at the place names. None: there is no pointer, or it is not one of ours."""
    try:
        with closing(bucket.blocks(at.key(POINTER))) as blocks:  # ours is smaller than the first one
            return int(json.loads(next(blocks, b""))["version"])
    except (ObjectMissing, ValueError, TypeError, KeyError, RecursionError):
        return None


def _rows(at: Destination, catalogue: Catalogue, lease: Lease) -> Iterator[dict[str, Any]]:
    after = ("", "")
    while True:
        lease.keep()
        with lease.database.read_system() as connection:
            page = entries.page(connection, catalogue.id, at.version, after=after, limit=_PAGE)
            named = copies.of_items(connection, at, [(one.item, one.variant) for one in page])
        for entry in page:
            yield {
                "item": entry.item,
                "variant": entry.variant,
                "object_key": at.key(named[entry.item, entry.variant, entry.sha256].name),
                "sha256": entry.sha256.hex(),
                "bytes": entry.bytes,
                "prompt": entry.request.get("prompt"),
                "version": entry.from_version,
                "stale": entry.is_stale_in(at.version),
            }
        if len(page) < _PAGE:
            return
        after = (page[-1].item, page[-1].variant)
