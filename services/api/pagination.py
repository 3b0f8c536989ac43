"""Cursors: the position at which a page ended, signed for one list and opaque to clients."""

import base64
import binascii
import hmac
import json
import struct
from collections.abc import Iterable

from services.api.errors import ApiError
from services.core.jobs.listing import Place

_POSITION_BYTES = 8
_PROOF_BYTES = 12
_AMONG_FAILED = 1 << 63  # of a list of jobs that begins with those that have failures
_SCORE = struct.Struct(">di")


def encode_cursor(secret: str, listing: str, position: int) -> str:
    """`listing` names the list with its filter: the cursor is valid for that list only."""
    return _encode(secret, listing, position.to_bytes(_POSITION_BYTES, "big"))


def decode_cursor(secrets: Iterable[str], listing: str, cursor: str) -> int:
    """Raises ApiError unless `encode_cursor` made it with one of the secrets for the same list."""
    return int.from_bytes(_decode(secrets, listing, cursor), "big")


def encode_name(secret: str, listing: str, name: str) -> str:
    """The cursor of a list that is ordered by names."""
    return _encode(secret, listing, name.encode())


def decode_name(secrets: Iterable[str], listing: str, cursor: str) -> str:
    """Raises ApiError unless `encode_name` made it with one of the secrets for the same list."""
    return _decode(secrets, listing, cursor).decode()


def encode_place(secret: str, listing: str, place: tuple[str, str]) -> str:
    """The cursor of a list that is ordered by two names."""
    return _encode(secret, listing, json.dumps(place, ensure_ascii=False).encode())


def decode_place(secrets: Iterable[str], listing: str, cursor: str | None) -> tuple[str, str]:
    """The place before the first without a cursor. Raises ApiError unless `encode_place` made it for the same list."""
    if cursor is None:
        return "", ""
    first, second = json.loads(_decode(secrets, listing, cursor))
    return first, second


def encode_score(secret: str, listing: str, place: tuple[float, int]) -> str:
    """The cursor of a list that is ordered by a score."""
    return _encode(secret, listing, _SCORE.pack(*place))


def decode_score(secrets: Iterable[str], listing: str, cursor: str | None) -> tuple[float, int] | None:
    """None without a cursor. Raises ApiError unless `encode_score` made it for the same list."""
    if cursor is None:
        return None
    score, index = _SCORE.unpack(_decode(secrets, listing, cursor))
    return score, index


def _encode(secret: str, listing: str, value: bytes) -> str:
    return base64.urlsafe_b64encode(value + _proof(secret, listing, value)).decode().rstrip("=")


def _decode(secrets: Iterable[str], listing: str, cursor: str) -> bytes:
    try:
        given = cursor.encode("ascii")
        value = base64.urlsafe_b64decode(given + b"=" * (-len(given) % 4))[:-_PROOF_BYTES]
    except (UnicodeEncodeError, binascii.Error):
        given, value = b"", b""
    if not any(hmac.compare_digest(given, _encode(one, listing, value).encode()) for one in secrets):
        raise ApiError(
            400, "invalid_cursor", "cursor must be the next_cursor of this list's page before.", param="cursor"
        )
    return value


def _proof(secret: str, listing: str, value: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"cursor\n" + listing.encode() + b"\n" + value, "sha256")[:_PROOF_BYTES]


def encode_job_place(secret: str, listing: str, place: Place) -> str:
    """Of a list of jobs in any order."""
    return encode_cursor(secret, listing, place.job_id + (_AMONG_FAILED if place.failed else 0))


def decode_job_place(secrets: Iterable[str], listing: str, cursor: str) -> Place:
    """The inverse of `encode_job_place`. Raises ApiError."""
    position = decode_cursor(secrets, listing, cursor)
    return Place(position % _AMONG_FAILED, position >= _AMONG_FAILED)
