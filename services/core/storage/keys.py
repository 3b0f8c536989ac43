"""The names of images and thumbnails in the object store. A key is the installation's prefix and a name."""

import hashlib

from services.core.model.file_names import EXTENSIONS

_SPREADS = 256  # two hex digits


def image_name(tenant_id: int, job: str, index: int, render_key: str, output_format: str) -> str:
    """`<two hash characters>/<tenant>/<job>/<index>-<render key>.<ext>`: evenly spread, and free of text from users."""
    return f"{_folder(tenant_id, job, index)}{index:08d}-{render_key[:16]}.{EXTENSIONS[output_format]}"


def shard_name(tenant_id: int, job: str, first: int, claim_id: int, sha256: str) -> str:
    """`<two hash characters>/<tenant>/<job>/<first index>-<claim>-<its own sha256>.tar`: images of one job that one
    claim rendered, in one of the folders of these images. Nothing else is ever written to it: a database that was
    restored may give a claim's id again."""
    return f"{_folder(tenant_id, job, first)}{first:08d}-{claim_id}-{sha256[:16]}.tar"


def image_folders(tenant_id: int, job: str, total: int) -> list[str]:
    """The folders of a job's images: as many as there are spreads, or fewer for a small job."""
    found: set[str] = set()
    for index in range(total):
        found.add(_folder(tenant_id, job, index))
        if len(found) == _SPREADS:
            break
    return sorted(found)


def tenant_folders(tenant_id: int) -> list[str]:
    """Every folder in which objects of a tenant may lie."""
    kinds = ("files", "uploads", "exports", "datasets", "catalogues", "thumbnails")
    return [f"{kind}/{tenant_id}/" for kind in kinds] + [f"{spread:02x}/{tenant_id}/" for spread in range(_SPREADS)]


def thumbnail_name(tenant_id: int, job: str, index: int, sha256: str) -> str:
    """`thumbnails/<tenant>/<job>/<index>-<the picture's sha256>.webp`: made on demand, so there may be none."""
    return f"{thumbnail_folder(tenant_id, job)}{index:08d}-{sha256[:16]}.webp"


def thumbnail_folder(tenant_id: int, job: str) -> str:
    return f"thumbnails/{tenant_id}/{job}/"


def catalogue_thumbnail_name(tenant_id: int, catalogue: str, object_key: str) -> str:
    """`thumbnails/<tenant>/<catalogue>/<digest of the picture's key>.webp`: made on demand, so there may be none."""
    digest = hashlib.sha256(object_key.encode()).hexdigest()[:32]
    return f"{thumbnail_folder(tenant_id, catalogue)}{digest}.webp"


def _folder(tenant_id: int, job: str, index: int) -> str:
    spread = hashlib.sha256(f"{job}/{index}".encode()).hexdigest()[:2]
    return f"{spread}/{tenant_id}/{job}/"
