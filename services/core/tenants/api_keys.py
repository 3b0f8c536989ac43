"""Tenants and their API keys. A key is shown once; only its HMAC under PRESSWORK_SECRET is stored.

A key is `pw_`, an id of 8 characters, `_`, and 43 random characters: about 256 bits. Such a key needs no slow hash.
"""

import hmac
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log

_LETTERS = string.ascii_letters + string.digits
_NEW = statement("api_keys.new")(f"""
WITH made AS (
  INSERT INTO api_keys (id, tenant_id, name, hmac) VALUES (:id, :tenant_id, :name, :hmac) RETURNING id, tenant_id, name
)
{log.of_each("made", "'key.issued'", subject="'key/' || id", data="jsonb_build_object('name', name)")}
""")  # noqa: S608  our own text
_FIND = statement("api_keys.find")("SELECT tenant_id, hmac FROM api_keys WHERE id = :id AND revoked_at IS NULL")
# Of two servers whose secrets are exchanged, neither waits for the other.
_REHASH = statement("api_keys.rehash")("""
UPDATE api_keys SET hmac = :hmac WHERE id = (SELECT id FROM api_keys WHERE id = :id FOR UPDATE SKIP LOCKED)
""")
_REVOKE = statement("api_keys.revoke")(f"""
WITH moved AS (UPDATE api_keys SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL RETURNING id, tenant_id)
{log.of_each("moved", "'key.revoked'", subject="'key/' || id")}
""")  # noqa: S608  our own text
_DEFAULT = statement("api_keys.default")("SELECT min(id) FROM tenants")


_LIST = statement("api_keys.list")("""
SELECT k.id, t.name AS tenant, k.name, k.created_at, k.revoked_at
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id ORDER BY k.created_at, k.id
""")


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. It is no longer valid once it is revoked."""

    id: str
    tenant: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


def _proof(secret: str, key: str) -> bytes:
    return hmac.digest(secret.encode(), key.encode(), "sha256")


def default_tenant(connection: Connection) -> int:
    return int(connection.execute(_DEFAULT).scalar_one())


def issue_key(connection: Connection, secret: str, tenant_id: int, name: str) -> str:
    """Creates a key and returns it in clear text: it cannot be shown again."""
    key_id = "".join(secrets.choice(_LETTERS) for _ in range(8))
    key = f"pw_{key_id}_{''.join(secrets.choice(_LETTERS) for _ in range(43))}"
    connection.execute(_NEW, {"id": key_id, "tenant_id": tenant_id, "name": name, "hmac": _proof(secret, key)})
    return key


def authenticate(connection: Connection, accepted: Sequence[str], key: str) -> int | None:
    """The tenant of a valid key; None if it is invalid or revoked. A key that was hashed under another of the accepted
    secrets is hashed again under the first one."""
    parts = key.split("_")
    if len(key) > 100 or len(parts) != 3 or parts[0] != "pw" or not key.isascii():
        return None
    row = connection.execute(_FIND, {"id": parts[1]}).one_or_none()
    proofs = [_proof(secret, key) for secret in accepted]
    if row is None or not any(hmac.compare_digest(proof, row.hmac) for proof in proofs):
        return None
    if not hmac.compare_digest(proofs[0], row.hmac):
        connection.execute(_REHASH, {"id": parts[1], "hmac": proofs[0]})
    return int(row.tenant_id)


def listed(connection: Connection) -> list[Key]:
    """Every key, the oldest first."""
    return [Key(row.id, row.tenant, row.name, row.created_at, row.revoked_at) for row in connection.execute(_LIST)]


def revoke_key(connection: Connection, key_id: str) -> bool:
    """Revokes a key from the next request on. False: there is no such valid key."""
    return connection.execute(_REVOKE, {"id": key_id}).rowcount == 1
