"""The installation that objects in a bucket belong to: one database with its programs.

A marker object under the prefix names it. Two installations can share a bucket if each has a prefix of its own. The
prefixes that an installation has had are kept in the database, because objects stay where they were written.
"""

import json
import logging

from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.model.errors import ObjectMissing, SettingsError
from services.core.storage.s3 import S3Store

log = logging.getLogger(__name__)
MARKER = "presswork-installation.json"

_READ = statement("installation.read")("SELECT id::text, prefixes FROM installation")
_REMEMBER = statement("installation.remember")("""
UPDATE installation SET prefixes = array_append(prefixes, :prefix) WHERE :prefix <> ALL(prefixes)
""")


def claim_prefix(database: Database, store: S3Store) -> None:
    """Marks the store's prefix as this installation's, and tells the store of the prefixes it had before.

    Raises:
        SettingsError: another installation's objects lie there.
        Unavailable: the database or the store cannot be reached.
    """
    with database.begin_system() as connection:
        ours, prefixes = connection.execute(_READ).one()
    store.earlier_prefixes = tuple(prefix for prefix in prefixes if prefix != store.prefix)
    theirs = _installation(store.mark(MARKER, _content(ours)))
    if theirs != ours:
        raise SettingsError(
            f"{_place(store)} holds the objects of another installation, {theirs}: set PRESSWORK_PREFIX or "
            f"PRESSWORK_BUCKET to a place of this one's own. If that installation is gone, delete {MARKER} there."
        )
    if store.prefix not in prefixes:
        with database.begin_system() as connection:
            connection.execute(_REMEMBER, {"prefix": store.prefix})
        log.info("prefix claimed", extra={"bucket": store.bucket, "prefix": store.prefix})


def recognize(database: Database, store: S3Store) -> None:
    """The same for a prefix that must be this installation's already: nothing is marked.

    Raises:
        SettingsError: it is not marked, or another installation's objects lie there.
        Unavailable: the database or the store cannot be reached.
    """
    with database.begin_system() as connection:
        ours, prefixes = connection.execute(_READ).one()
    store.earlier_prefixes = tuple(prefix for prefix in prefixes if prefix != store.prefix)
    try:
        theirs = _installation(store.read(store.key(MARKER)))
    except ObjectMissing:
        theirs = ""
    if theirs != ours:
        whose = f"holds the objects of another installation, {theirs}" if theirs else f"has no {MARKER}"
        raise SettingsError(
            f"{_place(store)} {whose}: set PRESSWORK_BUCKET and PRESSWORK_PREFIX to the place of this database's "
            "objects. If this is it, `presswork doctor` marks a place that has no mark."
        )


def _content(installation: str) -> bytes:
    about = "The objects beside this one belong to this installation of Presswork. Do not delete it while they do."
    return json.dumps({"installation": installation, "about": about}, indent=2).encode()


def _installation(content: bytes) -> str:
    try:
        return str(json.loads(content)["installation"])
    except (ValueError, KeyError, TypeError):
        return "whose marker cannot be read"


def _place(store: S3Store) -> str:
    return (
        f"The prefix {store.prefix!r} of the bucket {store.bucket!r}"
        if store.prefix
        else f"The bucket {store.bucket!r}"
    )
