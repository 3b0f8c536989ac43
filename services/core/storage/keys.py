"""The keys of images in the object store, and the file extension of each output format."""

import hashlib

EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}


def image_key(tenant_id: int, job: str, index: int, render_key: str, output_format: str) -> str:
    """`<two hash characters>/<tenant>/<job>/<index>-<render key>.<ext>`: evenly spread, and free of text from users."""
    spread = hashlib.sha256(f"{job}/{index}".encode()).hexdigest()[:2]
    return f"{spread}/{tenant_id}/{job}/{index:08d}-{render_key[:16]}.{EXTENSIONS[output_format]}"
