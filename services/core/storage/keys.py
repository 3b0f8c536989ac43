"""The keys of images in the object store."""

import hashlib

from services.core.model.file_names import EXTENSIONS


def image_key(tenant_id: int, job: str, index: int, render_key: str, output_format: str) -> str:
    """`<two hash characters>/<tenant>/<job>/<index>-<render key>.<ext>`: evenly spread, and free of text from users."""
    spread = hashlib.sha256(f"{job}/{index}".encode()).hexdigest()[:2]
    return f"{spread}/{tenant_id}/{job}/{index:08d}-{render_key[:16]}.{EXTENSIONS[output_format]}"
