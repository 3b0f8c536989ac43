"""Secrets and signatures of webhooks, as Standard Webhooks has them.

A secret is random, and stored encrypted under PRESSWORK_SECRET, so that the database alone signs nothing. When
PRESSWORK_SECRET is exchanged, what is stored is encrypted again; the secret itself, which receivers know, stays.
"""

import base64
import functools
import hmac
import secrets
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from services.core.model.errors import Conflict

PREFIX = "whsec_"
OVERLAP_HOURS = 24  # for which the secret before signs too
_BYTES = 32


class SecretUnreadable(Conflict):
    """The webhook's secret is encrypted under a PRESSWORK_SECRET that is not known here; rotate it."""

    def __init__(self) -> None:
        super().__init__(self.__doc__, "secret_unreadable")


def new() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def sealed(accepted: Sequence[str], secret: str) -> bytes:
    """The secret, encrypted under the first of the installation's secrets."""
    return _keys(tuple(accepted)).encrypt(secret.encode())


def opened(accepted: Sequence[str], token: bytes) -> str:
    """The inverse, under any of them. Raises SecretUnreadable."""
    try:
        return _keys(tuple(accepted)).decrypt(token).decode()
    except InvalidToken:
        raise SecretUnreadable from None


def is_current(accepted: Sequence[str], token: bytes) -> bool:
    """Whether it is encrypted under the first of them."""
    try:
        _keys((accepted[0],)).decrypt(token)
    except InvalidToken:
        return False
    return True


def headers(given: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers by which a receiver with one of the secrets verifies the message, at that second since 1970."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (hmac.digest(base64.b64decode(one.removeprefix(PREFIX)), signed, "sha256") for one in given)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in signatures),
    }


@functools.lru_cache(maxsize=8)
def _keys(accepted: tuple[str, ...]) -> MultiFernet:
    return MultiFernet(
        [Fernet(base64.urlsafe_b64encode(hmac.digest(one.encode(), b"webhook secrets", "sha256"))) for one in accepted]
    )
