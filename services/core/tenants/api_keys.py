"""API keys of tenants. A key is shown once; only its HMAC under PRESSWORK_SECRET is stored.

A key is `pw_`, an id of 8 characters, `_`, and 43 random characters: about 256 bits. Such a key needs no slow hash. It
has scopes, and it ends when it expires or is revoked; its row stays.
"""

import hmac
import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.model import scopes
from services.core.model.errors import Conflict, InvalidKey, NotFound
from services.core.model.scopes import Principal, Scope

_LETTERS = string.ascii_letters + string.digits
_NEW = statement("api_keys.new")(f"""
WITH made AS (
  INSERT INTO api_keys (id, tenant_id, name, hmac, scopes, expires_at, created_by)
  SELECT :id, :tenant_id, :name, :hmac, CAST(:scopes AS text[]), now() + make_interval(secs => :expires_seconds),
         {log.ACTOR}
  WHERE NOT EXISTS (SELECT FROM tenants WHERE id = :tenant_id AND deleted_at IS NOT NULL)
  RETURNING id, tenant_id, name, scopes, expires_at
)
{
    log.of_each(
        "made",
        "'key.issued'",
        subject="'key/' || id",
        data="jsonb_strip_nulls(jsonb_build_object('name', name, 'scopes', array_to_string(scopes, ' '), "
        "'expires_at', expires_at))",
    )
}
""")  # noqa: S608  our own text
# A key that was just used is not written again: whoever sends a thousand requests a minute causes one UPDATE.
_UNSEEN = """(last_used_at IS NULL
  OR last_used_at NOT BETWEEN now() - interval '1 minute' AND now() + interval '1 minute')"""
# What a principal is by its tenant `t`.
OF_TENANT = "t.operator, t.state = 'suspended' AS suspended, t.max_requests_per_second"
_FIND = statement("api_keys.find")(f"""
SELECT tenant_id, k.name, hmac, scopes, expires_at, expires_at <= now() AS expired, revoked_at, {_UNSEEN} AS unseen,
       {OF_TENANT}
FROM api_keys k JOIN tenants t ON t.id = tenant_id WHERE k.id = :id
""")  # noqa: S608  our own text
# Of two servers whose secrets are exchanged, neither waits for the other.
_REHASH = statement("api_keys.rehash")("""
UPDATE api_keys SET hmac = :hmac WHERE id = (SELECT id FROM api_keys WHERE id = :id FOR UPDATE SKIP LOCKED)
""")
_SEE = statement("api_keys.see")(f"""
UPDATE api_keys SET last_used_at = now()
WHERE id = (SELECT id FROM api_keys WHERE id = :id AND {_UNSEEN} FOR UPDATE SKIP LOCKED)
""")  # noqa: S608  our own text
_REVOKE = statement("api_keys.revoke")(f"""
WITH moved AS (
  UPDATE api_keys SET revoked_at = now()
  WHERE id = :id AND revoked_at IS NULL AND tenant_id = coalesce(:tenant_id, tenant_id) RETURNING id, tenant_id, name
)
{log.of_each("moved", "'key.revoked'", subject="'key/' || id", data="jsonb_build_object('name', name)")}
""")  # noqa: S608  our own text
_DEFAULT = statement("api_keys.default")("SELECT min(id) FROM tenants")
_LIST = statement("api_keys.list")("""
SELECT k.id, t.name AS tenant, k.name, k.scopes, k.created_at, k.last_used_at, k.expires_at, k.revoked_at, k.created_by,
       maker.name AS created_by_name,
       CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= now() THEN 'expired' ELSE 'active' END
       AS status
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
LEFT JOIN api_keys maker ON maker.id = CASE WHEN starts_with(k.created_by, 'key/') THEN substr(k.created_by, 5) END
WHERE k.tenant_id = coalesce(:tenant_id, k.tenant_id) AND k.id = coalesce(:id, k.id)
ORDER BY k.created_at, k.id
""")


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. `status` is active, expired or revoked; `last_used_at` may be a minute late;
    `created_by` is an actor, and `created_by_name` its name if it is a key."""

    id: str
    tenant: str
    name: str
    scopes: tuple[Scope, ...]
    status: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    created_by: str | None
    created_by_name: str | None

    @property
    def prefix(self) -> str:
        """How the key begins: enough to recognize it, and nothing of its secret."""
        return f"pw_{self.id}"


def _proof(secret: str, key: str) -> bytes:
    return hmac.digest(secret.encode(), key.encode(), "sha256")


def default_tenant(connection: Connection) -> int:
    return int(connection.execute(_DEFAULT).scalar_one())


def issue_key(
    connection: Connection,
    secret: str,
    tenant_id: int,
    name: str,
    *,
    given: Collection[Scope] = scopes.ALL,
    expires_seconds: float | None = None,
) -> str:
    """Creates a key with the scopes `given` and returns it in clear text: it cannot be shown again.

    Raises:
        Conflict: the tenant is being deleted.
    """
    key_id = "".join(secrets.choice(_LETTERS) for _ in range(8))
    key = f"pw_{key_id}_{''.join(secrets.choice(_LETTERS) for _ in range(43))}"
    values = {"id": key_id, "tenant_id": tenant_id, "name": name, "hmac": _proof(secret, key)}
    ordered = [scope.value for scope in scopes.ALL if scope in given]
    if not connection.execute(_NEW, values | {"scopes": ordered, "expires_seconds": expires_seconds}).rowcount:
        raise Conflict("The tenant is being deleted; it gets no keys any more.", "being_deleted")
    return key


def id_of(key: str) -> str:
    """The id that a key in clear text holds."""
    return key.split("_")[1]


def authenticate(connection: Connection, accepted: Sequence[str], key: str) -> Principal:
    """Whom a valid key stands for. A key that was hashed under another of the accepted secrets is hashed again under
    the first one.

    Raises:
        InvalidKey: there is no such key, or it has expired or was revoked. Only who has the whole key learns which.
    """
    parts = key.split("_")
    if len(key) > 100 or len(parts) != 3 or parts[0] != "pw" or not key.isascii():
        raise InvalidKey
    row = connection.execute(_FIND, {"id": parts[1]}).one_or_none()
    proofs = [_proof(secret, key) for secret in accepted]
    if row is None or not any(hmac.compare_digest(proof, row.hmac) for proof in proofs):
        raise InvalidKey
    _assert_holds(row)
    if not hmac.compare_digest(proofs[0], row.hmac):
        connection.execute(_REHASH, {"id": parts[1], "hmac": proofs[0]})
    if row.unseen:
        connection.execute(_SEE, {"id": parts[1]})
    return Principal(
        int(row.tenant_id), parts[1], row.name, frozenset(map(Scope, row.scopes)), operator=row.operator,
        suspended=row.suspended, requests_per_second=row.max_requests_per_second,
    )  # fmt: skip


def _assert_holds(row: Any) -> None:
    if row.revoked_at is not None:
        raise InvalidKey(f"This API key was revoked at {_moment(row.revoked_at)}; use another one.", "revoked_api_key")
    if row.expired:
        raise InvalidKey(f"This API key expired at {_moment(row.expires_at)}; use another one.", "expired_api_key")


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def listed(connection: Connection, tenant_id: int | None = None) -> list[Key]:
    """Every key, or the tenant's, the oldest first."""
    return [_key(row) for row in connection.execute(_LIST, {"tenant_id": tenant_id, "id": None})]


def find(connection: Connection, tenant_id: int, key_id: str) -> Key:
    """Raises NotFound."""
    row = connection.execute(_LIST, {"tenant_id": tenant_id, "id": key_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such key.")
    return _key(row)


def revoke_key(connection: Connection, key_id: str, tenant_id: int | None = None) -> bool:
    """Revokes a key, of that tenant if one is named, from the next request on. False: there is no such key, or it was
    revoked before."""
    return connection.execute(_REVOKE, {"id": key_id, "tenant_id": tenant_id}).rowcount == 1


def _key(row: Any) -> Key:
    given = tuple(map(Scope, row.scopes))
    return Key(
        row.id, row.tenant, row.name, given, row.status, row.created_at, row.last_used_at, row.expires_at,
        row.revoked_at, row.created_by, row.created_by_name,
    )  # fmt: skip
