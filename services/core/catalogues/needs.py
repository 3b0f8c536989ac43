"""Which catalogues need a person: their newest run waits for one, or has not published what it was to publish, or what
is published could not be copied to its destination."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues.catalogue_runs import Run
from services.core.db.statements import statement

MOST = 90  # catalogues that are looked at, and as many of their runs
_LOOKED_AT = 10  # runs of each, for the newest one that is not for its plan alone
_COLUMNS = ", ".join(Run.__slots__)
_OF_TENANT = statement("needs.of_tenant")(f"""
SELECT c.name, c.published, d.error, d.place, d.version, d.next_at, newest.* FROM (
  SELECT id AS of_catalogue, name, published FROM catalogues WHERE tenant_id = :tenant_id AND deleted_at IS NULL
  ORDER BY name LIMIT :most
) c CROSS JOIN LATERAL (
  SELECT {_COLUMNS} FROM (
    SELECT {_COLUMNS} FROM catalogue_runs WHERE catalogue_id = of_catalogue ORDER BY id DESC LIMIT :looked_at
  ) looked_at WHERE NOT plan_only ORDER BY id DESC LIMIT 1
) newest LEFT JOIN LATERAL (
  SELECT error, place, version, next_at FROM catalogue_destinations
  WHERE catalogue_id = of_catalogue AND error IS NOT NULL OFFSET 0
) d ON true
WHERE newest.state IN ('reviewing', 'kept', 'failed') OR d.error IS NOT NULL ORDER BY c.name
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class FailedCopy:
    """The version that could not be copied, where to, why, and when it is tried again: None, until somebody has changed
    something."""

    version: int
    place: str
    message: str
    next_at: datetime | None


@dataclass(frozen=True, slots=True)
class Need:
    """A catalogue's name, and what needs a person: its newest run, a copy, or both."""

    catalogue: str
    run: Run | None
    copy: FailedCopy | None


def of_tenant(connection: Connection, tenant_id: int) -> list[Need]:
    """The catalogues that need a person, by name."""
    values = {"tenant_id": tenant_id, "most": MOST, "looked_at": _LOOKED_AT}
    found = [_need(*row) for row in connection.execute(_OF_TENANT, values)]
    return [one for one in found if one.run or one.copy]


def _need(
    catalogue: str, published: int | None, error: dict[str, str] | None, place: str, version: int,
    next_at: datetime | None, *of_run: Any,
) -> Need:  # fmt: skip
    run = Run(*of_run)
    copy = None if error is None else FailedCopy(version, place, error["message"], next_at)
    return Need(catalogue, run if is_needed(run, published) else None, copy)


def is_needed(run: runs.Run, published: int | None) -> bool:
    """Whether somebody has to do something about a catalogue whose newest run this is."""
    return run.state in ("reviewing", "failed") or (run.state == "kept" and run.version != (published or 0))
