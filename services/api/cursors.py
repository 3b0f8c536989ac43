"""Cursors: where a page ended, signed for the list that it belongs to, opaque to clients."""

import base64
import binascii
import hmac

from services.api.errors import Refused

_PROOF_BYTES = 12


def seal(secret: str, listing: str, position: int) -> str:
    """`listing` names the list with its filter: a cursor is good for no other."""
    value = position.to_bytes(8, "big")
    return base64.urlsafe_b64encode(value + _proof(secret, listing, value)).decode().rstrip("=")


def unseal(secret: str, listing: str, cursor: str) -> int:
    """Raises Refused unless `seal` made it with the same secret for the same list."""
    try:
        data = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except (UnicodeEncodeError, binascii.Error):
        data = b""
    value, proof = data[:8], data[8:]
    genuine = len(value) == 8 and hmac.compare_digest(proof, _proof(secret, listing, value))
    position = int.from_bytes(value, "big")
    if not genuine or cursor != seal(secret, listing, position):  # base 64 has several spellings
        raise Refused(
            400, "invalid_cursor", "cursor must be the next_cursor of this list's page before.", param="cursor"
        )
    return position


def _proof(secret: str, listing: str, value: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"cursor\n" + listing.encode() + b"\n" + value, "sha256")[:_PROOF_BYTES]
