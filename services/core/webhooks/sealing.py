"""Keeps the secrets of webhooks: encrypted under PRESSWORK_SECRET, so that the database alone signs nothing.

When PRESSWORK_SECRET is exchanged, what is stored is encrypted again; the secret itself, which receivers know, stays.
"""

import base64
import functools
import hmac
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from services.core.model.errors import Conflict


class SecretUnreadable(Conflict):
    """The webhook's secret is encrypted under a PRESSWORK_SECRET that is not known here; rotate it."""

    def __init__(self) -> None:
        super().__init__(self.__doc__, "secret_unreadable")


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


@functools.lru_cache(maxsize=8)
def _keys(accepted: tuple[str, ...]) -> MultiFernet:
    return MultiFernet(
        [Fernet(base64.urlsafe_b64encode(hmac.digest(one.encode(), b"webhook secrets", "sha256"))) for one in accepted]
    )
