"""Cursors: the position at which a page ended, signed for one list and opaque to clients."""

import base64
import binascii
import hmac
from collections.abc import Iterable

from services.api.errors import ApiError

_POSITION_BYTES = 8
_PROOF_BYTES = 12


def encode_cursor(secret: str, listing: str, position: int) -> str:
    """`listing` names the list with its filter: the cursor is valid for that list only."""
    value = position.to_bytes(_POSITION_BYTES, "big")
    return base64.urlsafe_b64encode(value + _proof(secret, listing, value)).decode().rstrip("=")


def decode_cursor(secrets: Iterable[str], listing: str, cursor: str) -> int:
    """Raises ApiError unless `encode_cursor` made it with one of the secrets for the same list."""
    try:
        given = cursor.encode("ascii")
        position = int.from_bytes(base64.urlsafe_b64decode(given + b"=" * (-len(given) % 4))[:_POSITION_BYTES], "big")
    except (UnicodeEncodeError, binascii.Error):
        given, position = b"", 0
    if not any(hmac.compare_digest(given, encode_cursor(one, listing, position).encode()) for one in secrets):
        raise ApiError(
            400, "invalid_cursor", "cursor must be the next_cursor of this list's page before.", param="cursor"
        )
    return position


def _proof(secret: str, listing: str, value: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"cursor\n" + listing.encode() + b"\n" + value, "sha256")[:_PROOF_BYTES]
