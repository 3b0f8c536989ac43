"""Sessions of browsers: an API key, or a sign-in at a provider, is exchanged for a cookie, of which only the sha256 is
stored.

A session may do what its key may do, and ends when it is signed out, after DAYS, and with its key. That of somebody
whom a provider has signed in may do what followed from the provider's answer, and ends after USER_HOURS. Functions take
an open system transaction: the cookie decides which tenant it is.
"""

import hashlib
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model.errors import InvalidKey
from services.core.model.scopes import ALL, Principal, Scope
from services.core.tenants import api_keys

DAYS = 7
SECONDS = DAYS * 24 * 3600
USER_HOURS = 12  # the provider tells nobody that somebody has left
USER_SECONDS = USER_HOURS * 3600
_NEW_OF_USER = statement("sessions.new_of_user")("""
INSERT INTO sessions (sha256, user_tenant, user_name, user_scopes, expires_at)
SELECT :sha256, id, :name, CAST(:scopes AS text[]), now() + make_interval(secs => :seconds) FROM tenants
WHERE CASE WHEN CAST(:tenant AS text) IS NULL THEN id = (SELECT min(id) FROM tenants) ELSE name = :tenant END
""")
_NEW = statement("sessions.new")("""
INSERT INTO sessions (sha256, key_id, expires_at) VALUES (:sha256, :key_id, now() + make_interval(days => :days))
""")
_KEY_HOLDS = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())"
_FIND = statement("sessions.find")(f"""
SELECT coalesce(k.tenant_id, s.user_tenant) AS tenant_id, coalesce(k.id, '') AS key_id,
       coalesce(k.name, s.user_name) AS name, coalesce(k.scopes, s.user_scopes) AS scopes, {api_keys.OF_TENANT}
FROM sessions s LEFT JOIN api_keys k ON k.id = s.key_id JOIN tenants t ON t.id = coalesce(k.tenant_id, s.user_tenant)
WHERE s.sha256 = :sha256 AND s.expires_at > now() AND (s.key_id IS NULL OR {_KEY_HOLDS})
""")  # noqa: S608  our own text
_ENDED = statement("sessions.ended")(f"""
SELECT asked.place
FROM unnest(CAST(:keys AS text[]), CAST(:sessions AS bytea[])) WITH ORDINALITY AS asked (key_id, sha256, place)
WHERE asked.key_id <> '' AND NOT EXISTS (SELECT FROM api_keys k WHERE k.id = asked.key_id AND {_KEY_HOLDS})
   OR asked.sha256 IS NOT NULL
      AND NOT EXISTS (SELECT FROM sessions s WHERE s.sha256 = asked.sha256 AND s.expires_at > now())
""")  # noqa: S608  our own text
LINK_SECONDS = 120
_NEW_LINK = statement("sessions.new_link")("""
INSERT INTO sign_in_links (sha256, key_id, expires_at)
VALUES (:sha256, :key_id, now() + make_interval(secs => :seconds)) RETURNING expires_at
""")
_FORGET_LINKS = statement("sessions.forget_links")("DELETE FROM sign_in_links WHERE expires_at <= now()")
_USE_LINK = statement("sessions.use_link")(f"""
WITH used AS (DELETE FROM sign_in_links WHERE sha256 = :sha256 RETURNING key_id, expires_at)
SELECT k.id FROM used JOIN api_keys k ON k.id = used.key_id WHERE used.expires_at > now() AND {_KEY_HOLDS}
""")  # noqa: S608  our own text
_END = statement("sessions.end")("DELETE FROM sessions WHERE sha256 = :sha256")
_FORGET = statement("sessions.forget")("DELETE FROM sessions WHERE expires_at <= now()")


def begin(connection: Connection, accepted: Sequence[str], key: str) -> str:
    """The cookie of a new session. Sessions that have expired are forgotten. Raises InvalidKey."""
    return _begin(connection, api_keys.authenticate(connection, accepted, key).key_id)


def new_link(connection: Connection, who: Principal) -> tuple[str, datetime]:
    """The token of a link that signs in once as that key, and when it expires. Links that have are forgotten."""
    token = secrets.token_urlsafe(32)
    connection.execute(_FORGET_LINKS)
    values = {"sha256": _hash(token), "key_id": who.key_id, "seconds": LINK_SECONDS}
    return token, connection.execute(_NEW_LINK, values).scalar_one()


def begin_by_link(connection: Connection, token: str) -> str:
    """The cookie of a new session of the link's key. Raises InvalidKey: it was used, has expired, or its key has."""
    key_id = connection.execute(_USE_LINK, {"sha256": _hash(token)}).scalar_one_or_none()
    if key_id is None:
        raise InvalidKey("This link was used before or has expired; `presswork open` makes another.", "invalid_link")
    return _begin(connection, key_id)


def begin_user(connection: Connection, name: str, given: Collection[Scope], tenant: str | None) -> str | None:
    """The cookie of a new session of somebody whom a provider has signed in, in the tenant of that name or in the
    first one. None: there is no such tenant."""
    cookie = secrets.token_urlsafe(32)
    connection.execute(_FORGET)
    scopes = [scope.value for scope in ALL if scope in given]
    values = {"sha256": _hash(cookie), "name": name, "scopes": scopes, "seconds": USER_SECONDS, "tenant": tenant}
    return cookie if connection.execute(_NEW_OF_USER, values).rowcount else None


def _begin(connection: Connection, key_id: str) -> str:
    cookie = secrets.token_urlsafe(32)
    connection.execute(_FORGET)
    connection.execute(_NEW, {"sha256": _hash(cookie), "key_id": key_id, "days": DAYS})
    return cookie


def find(connection: Connection, cookie: str) -> Principal | None:
    """Whom the session that the cookie names stands for, unless it has ended: its key, with the key's scopes of now."""
    digest = _hash(cookie)
    row = connection.execute(_FIND, {"sha256": digest}).one_or_none()
    if row is None:
        return None
    scopes = frozenset(map(Scope, row.scopes))
    return Principal(row.tenant_id, row.key_id, row.name, scopes, digest, row.operator, row.suspended)


def ended(connection: Connection, asked: Collection[Principal]) -> set[Principal]:
    """Those whose key or session has ended since they were let in."""
    listed = list(asked)
    values = {"keys": [one.key_id for one in listed], "sessions": [one.session for one in listed]}
    return {listed[row.place - 1] for row in connection.execute(_ENDED, values)}


def end(connection: Connection, cookie: str) -> None:
    """Ends it, if it has not ended."""
    connection.execute(_END, {"sha256": _hash(cookie)})


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
