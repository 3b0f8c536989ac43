"""Images by the custom_id of their request, in all jobs of a tenant, the newest first.

The index says in which pages of the table a custom_id may be (migration 0019): a search reads those, about one in a
thousand, and those that vacuum has not seen yet. It does so in a transaction of the system, since row-level security
would ask of each row whose job it is, and gives only places of this tenant's. The images are read as the tenant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.jobs.queries import ImageView

LOOKED_AT = 1_000  # requests with the custom_id, of all tenants, for one page
# An index of pages is read in no other way.
_BY_PAGES = statement("custom_ids.by_pages")("SET LOCAL enable_bitmapscan = on")
# Sorts what it has found: the planner would else go through the table in that order, and hope to find enough soon.
_FIND = statement("custom_ids.find")("""
WITH named AS MATERIALIZED (
  SELECT job_id, index FROM payloads WHERE custom_id = :custom_id
), looked_at AS MATERIALIZED (
  SELECT job_id, index FROM named WHERE (job_id, index) < (:job_id, :index)
  ORDER BY job_id DESC, index DESC LIMIT :most
)
SELECT looked_at.job_id, index, own.id IS NOT NULL AS is_own FROM looked_at
LEFT JOIN LATERAL (
  SELECT id FROM jobs WHERE jobs.id = looked_at.job_id AND tenant_id = :tenant_id AND deleted_at IS NULL OFFSET 0
) own ON true
ORDER BY looked_at.job_id DESC, index DESC
""")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """The first image of a request."""

    job_id: int
    index: int


NEWEST = Place(2**63 - 1, 2**31 - 1)


@dataclass(frozen=True, slots=True)
class Found:
    """`reached`: where the next page begins; None: all has been looked at."""

    places: list[Place]
    reached: Place | None


def find(connection: Connection, tenant_id: int, custom_id: str, *, behind: Place = NEWEST, limit: int) -> Found:
    """The next `limit` requests of the tenant with that custom_id, or fewer. Takes a transaction of the system for
    itself."""
    values = {"custom_id": custom_id, "tenant_id": tenant_id, "job_id": behind.job_id, "index": behind.index}
    connection.execute(_BY_PAGES)
    rows: Sequence[Any] = connection.execute(_FIND, values | {"most": LOOKED_AT}).all()
    own = [Place(row.job_id, row.index) for row in rows if row.is_own]
    if len(own) > limit:
        return Found(own[:limit], own[limit - 1])
    return Found(own, Place(rows[-1].job_id, rows[-1].index) if len(rows) == LOOKED_AT else None)


def images(connection: Connection, places: Sequence[Place]) -> list[ImageView]:
    """The images at these places, in their order, as far as the transaction sees them."""
    return queries.images_anywhere(connection, [(place.job_id, place.index) for place in places])
