"""Links to images that last as long as the images: signed, so that whoever has one needs no key.

A link names one image and nothing else can be made of it. It redirects to a presigned address that lasts minutes.
"""

import hmac

from services.core.model import ids

_SIGNATURE = 32  # hex digits: 128 bits


def signature(secret: str, job_id: int, index: int) -> str:
    return hmac.digest(secret.encode(), f"image\n{job_id}\n{index}".encode(), "sha256").hex()[:_SIGNATURE]


def is_genuine(secret: str, job_id: int, index: int, given: str) -> bool:
    return given.isascii() and hmac.compare_digest(signature(secret, job_id, index), given)


def image_url(base_url: str, secret: str, job_id: int, index: int) -> str:
    """`base_url` is what clients put in front of `/v1`."""
    address = f"{base_url.rstrip('/')}/v1/jobs/{ids.public_job(job_id)}/images/{index}/content"
    return f"{address}?signature={signature(secret, job_id, index)}"
