"""Signed links to images. They need no API key and stay valid as long as the image exists.

A link gives access to one image only. It redirects to a presigned URL that is valid for minutes.
"""

import hmac
from collections.abc import Iterable

from services.core.model import ids

_SIGNATURE = 32  # hex digits: 128 bits


def signature(secret: str, job_id: int, index: int) -> str:
    return hmac.digest(secret.encode(), f"image\n{job_id}\n{index}".encode(), "sha256").hex()[:_SIGNATURE]


def is_genuine(secrets: Iterable[str], job_id: int, index: int, given: str) -> bool:
    """Whether one of the secrets made that signature."""
    return given.isascii() and any(hmac.compare_digest(signature(one, job_id, index), given) for one in secrets)


def image_url(base_url: str, secret: str, job_id: int, index: int) -> str:
    """The link. `base_url` is the API's address without `/v1`."""
    address = f"{base_url.rstrip('/')}/v1/jobs/{ids.public_job(job_id)}/images/{index}/content"
    return f"{address}?signature={signature(secret, job_id, index)}"
