"""Signed links to images and to the files of exports. They need no API key and stay valid as long as what they name.

A link gives access to one image or one file only. It redirects to a presigned URL that is valid for minutes.
"""

import hmac
from collections.abc import Iterable
from urllib.parse import quote

from services.core.model import ids

_SIGNATURE = 32  # hex digits: 128 bits


def is_genuine(secrets: Iterable[str], job_id: int, index: int, given: str) -> bool:
    """Whether one of the secrets made that signature of an image."""
    return _is_of(secrets, _image(job_id, index), given)


def is_genuine_of_export(secrets: Iterable[str], export_id: int, path: str, given: str) -> bool:
    """Whether one of the secrets made that signature of a file."""
    return _is_of(secrets, _file(export_id, path), given)


def image_url(base_url: str, secret: str, job_id: int, index: int) -> str:
    """The link. `base_url` is the API's address without `/v1`."""
    address = f"{base_url.rstrip('/')}/v1/jobs/{ids.public_job(job_id)}/images/{index}/content"
    return f"{address}?signature={_signature(secret, _image(job_id, index))}"


def export_file_url(base_url: str, secret: str, export_id: int, public_export: str, path: str) -> str:
    """The link. It ends with the file's path, by which readers tell its format."""
    address = f"{base_url.rstrip('/')}/v1/exports/{public_export}/content/{quote(path)}"
    return f"{address}?signature={_signature(secret, _file(export_id, path))}"


def is_genuine_of_dataset(secrets: Iterable[str], dataset_id: int, version: int, path: str, given: str) -> bool:
    """Whether one of the secrets made that signature of a file."""
    return _is_of(secrets, _dataset_file(dataset_id, version, path), given)


def dataset_file_url(base_url: str, secret: str, dataset_id: int, version: int, path: str) -> str:
    """The link. It ends with the file's path, by which readers tell its format."""
    address = f"{base_url.rstrip('/')}/v1/dataset-files/{ids.public('dataset_', dataset_id)}/{version}/{quote(path)}"
    return f"{address}?signature={_signature(secret, _dataset_file(dataset_id, version, path))}"


def _dataset_file(dataset_id: int, version: int, path: str) -> str:
    return f"dataset\n{dataset_id}\n{version}\n{path}"


def _image(job_id: int, index: int) -> str:
    return f"image\n{job_id}\n{index}"


def _file(export_id: int, path: str) -> str:
    return f"export\n{export_id}\n{path}"


def _signature(secret: str, what: str) -> str:
    return hmac.digest(secret.encode(), what.encode(), "sha256").hex()[:_SIGNATURE]


def _is_of(secrets: Iterable[str], what: str, given: str) -> bool:
    return given.isascii() and any(hmac.compare_digest(_signature(one, what), given) for one in secrets)
