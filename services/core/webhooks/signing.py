"""Secrets and signatures of webhooks, as Standard Webhooks has them."""

import base64
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
OVERLAP_HOURS = 24  # for which the secret before signs too
_BYTES = 32


def new() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def headers(given: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers by which a receiver with one of the secrets verifies the message, at that second since 1970."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (hmac.digest(base64.b64decode(one.removeprefix(PREFIX)), signed, "sha256") for one in given)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in signatures),
    }
