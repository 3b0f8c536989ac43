"""Admission: the one check that all new work passes, in the transaction that records it.

Whoever records images, an export, a dataset's version, a file or a part asks here. All that a transaction asks for is
checked once, as the last thing before its commit, under a lock of the tenant: of two that together go over a quota the
second sees what the first has recorded. Tenants without quotas take no lock, and pay one read by key. What is large is
also looked at when it is asked for, without the lock, so that a refusal comes before millions of rows are written.

A quota limits what is new. Nothing that is there already is taken away when one is lowered.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from services.core.db import deferred
from services.core.db.statements import statement
from services.core.model import byte_sizes
from services.core.model.errors import QuotaExceeded, TenantSuspended
from services.core.model.quotas import TITLES
from services.core.tenants import usage

LARGE_IMAGES = 1_000
RETRY_SECONDS = 60  # until some of it may be free again, where that cannot be told
_SOONEST, _LATEST = 2, 3600
# The lock is taken by the same statement that reads the limits: the next one sees what its holder has committed.
_LIMITS = """max_images_queued IS NOT NULL OR max_bytes_stored IS NOT NULL OR max_bytes_spooled IS NOT NULL
  OR max_device_seconds_per_day IS NOT NULL"""
_STATE = statement("admission.state")(f"""
SELECT state, {_LIMITS} AS limited FROM tenants WHERE id = :tenant_id
""")  # noqa: S608  our own text
_LOCK = statement("admission.lock")(f"""
SELECT state, {_LIMITS} AS limited, (
  SELECT count(*) FROM (SELECT pg_advisory_xact_lock(7209421, t.id) WHERE {_LIMITS} OFFSET 0) taken
) AS locks FROM tenants t WHERE id = :tenant_id
""")  # noqa: S608  our own text
_USED = statement("admission.used")(usage.READ)
_RATE = statement("admission.rate")("""
SELECT coalesce(sum(done + failed), 0) / 120.0 AS rate FROM rates
WHERE tenant_id = :tenant_id AND grain = 'minute' AND at BETWEEN now() - interval '2 minutes' AND now()
""")


@dataclass(slots=True)
class _Asked:
    """What one transaction asks for, all of which it has recorded."""

    tenant_id: int
    renders: bool = False
    images: int = 0
    spooled: int = 0

    def __call__(self, connection: Connection) -> None:
        self.check(connection, _LOCK)

    def check(self, connection: Connection, by: Any) -> None:
        """Raises TenantSuspended, or QuotaExceeded."""
        row = connection.execute(by, {"tenant_id": self.tenant_id}).one_or_none()
        if row is None or row.state != "active":
            raise TenantSuspended
        if row.limited:
            _assert_within(connection, self)


def ask_images(connection: Connection, tenant_id: int, images: int) -> None:
    """Asks for images to be rendered, which the caller has recorded as queued. `images` may be 0, where a job is opened
    whose images come later.

    Raises:
        TenantSuspended, QuotaExceeded: now, or when the transaction would be committed.
    """
    asked = deferred.once(connection, ("admission", tenant_id), lambda: _Asked(tenant_id))
    asked.renders = True
    asked.images += images
    if images >= LARGE_IMAGES:
        asked.check(connection, _STATE)


def ask_bytes(connection: Connection, tenant_id: int, spooled: int) -> None:
    """Asks for bytes that the tenant sent, which the caller has recorded. Raises as `ask_images` does."""
    asked = deferred.once(connection, ("admission", tenant_id), lambda: _Asked(tenant_id))
    asked.spooled += spooled
    asked.check(connection, _STATE)


def ask_storage(connection: Connection, tenant_id: int) -> None:
    """Asks for objects to be written of pictures that are there. How large they will be is not known, so only a tenant
    whose bytes are used up is refused. Raises QuotaExceeded."""
    row = connection.execute(_STATE, {"tenant_id": tenant_id}).one_or_none()
    if row is not None and row.limited:
        _assert_stored(connection.execute(_USED, {"tenant_id": tenant_id}).one(), "exports or datasets")


def look(connection: Connection, tenant_id: int, *, images: int = 0, spooled: int = 0) -> None:
    """Whether so much more would be taken now: before the work of recording it. Raises as `ask_images` does."""
    row = connection.execute(_STATE, {"tenant_id": tenant_id}).one_or_none()
    if row is None or row.state != "active":
        raise TenantSuspended
    if row.limited:
        _assert_within(connection, _Asked(tenant_id, images > 0, images, spooled), recorded=False)


def _assert_within(connection: Connection, asked: _Asked, *, recorded: bool = True) -> None:
    """`recorded`: what is used has in it what is asked for."""
    row = connection.execute(_USED, {"tenant_id": asked.tenant_id}).one()
    if asked.images:
        _assert(connection, row, "images_queued", asked.images, recorded)
    if asked.spooled:
        _assert(connection, row, "bytes_spooled", asked.spooled, recorded)
    if asked.renders:
        _assert_stored(row, "pictures")
    limit = row.max_device_seconds_per_day
    if asked.renders and limit is not None and row.device_seconds_today >= limit:
        message = (
            f"The tenant {row.name} may use {limit:,.0f} {TITLES['device_seconds_per_day']} and has used "
            f"{row.device_seconds_today:,.0f}; new work is taken from 00:00 UTC on."
        )
        raise QuotaExceeded(message, max(1, math.ceil(row.seconds_left_today)))


def _assert_stored(row: Any, wanted: str) -> None:
    if row.max_bytes_stored is not None and row.bytes_stored >= row.max_bytes_stored:
        message = (
            f"The tenant {row.name} may have {byte_sizes.exact(row.max_bytes_stored)} stored and has "
            f"{byte_sizes.rounded(row.bytes_stored, row.max_bytes_stored)}; delete jobs, exports or datasets before "
            f"you ask for more {wanted}."
        )
        raise QuotaExceeded(message, RETRY_SECONDS)


def _assert(connection: Connection, row: Any, name: str, asked: int, recorded: bool) -> None:
    limit, used = getattr(row, f"max_{name}"), int(getattr(row, name))
    before = used - asked if recorded else used
    if limit is None or before + asked <= limit:
        return
    is_size = name.startswith("bytes_")
    amount = partial(byte_sizes.rounded, beside=limit) if is_size else "{:,}".format
    most = f"{byte_sizes.exact(limit)} {name.removeprefix('bytes_')}" if is_size else f"{limit:,} {TITLES[name]}"
    rule = f"The tenant {row.name} may have {most}"
    if asked > limit:
        raise QuotaExceeded(f"{rule}, and this asks for {amount(asked)}; ask for less, or for a higher quota.", None)
    wait = {"images_queued": "some are rendered", "bytes_spooled": "files are deleted"}[name]
    message = f"{rule} and has {amount(max(before, 0))}; this asks for {amount(asked)} more; try again when {wait}."
    retry = _until_rendered(connection, row.id, before + asked - limit) if name == "images_queued" else RETRY_SECONDS
    raise QuotaExceeded(message, retry)


def _until_rendered(connection: Connection, tenant_id: int, images: int) -> int:
    """In how many seconds so many of the tenant's images will have left the queue, as fast as in the last minutes."""
    rate = float(connection.execute(_RATE, {"tenant_id": tenant_id}).scalar_one())
    return min(max(math.ceil(images / rate), _SOONEST), _LATEST) if rate > 0 else RETRY_SECONDS
