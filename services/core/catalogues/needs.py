"""Which catalogues need a person: their newest run waits for one, or has not published what it was to publish."""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues.catalogue_runs import Run
from services.core.db.statements import statement

MOST = 90  # catalogues that are looked at, and as many of their runs
_LOOKED_AT = 10  # runs of each, for the newest one that is not for its plan alone
_COLUMNS = ", ".join(Run.__slots__)
_OF_TENANT = statement("needs.of_tenant")(f"""
SELECT c.name, c.published, newest.* FROM (
  SELECT id AS of_catalogue, name, published FROM catalogues WHERE tenant_id = :tenant_id AND deleted_at IS NULL
  ORDER BY name LIMIT :most
) c CROSS JOIN LATERAL (
  SELECT {_COLUMNS} FROM (
    SELECT {_COLUMNS} FROM catalogue_runs WHERE catalogue_id = of_catalogue ORDER BY id DESC LIMIT :looked_at
  ) looked_at WHERE NOT plan_only ORDER BY id DESC LIMIT 1
) newest
WHERE state IN ('reviewing', 'kept', 'failed') ORDER BY c.name
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Need:
    """A catalogue's name, the version that readers see, and the run that needs a person."""

    catalogue: str
    published: int | None
    run: Run


def of_tenant(connection: Connection, tenant_id: int) -> list[Need]:
    """The catalogues that need a person, by name."""
    values = {"tenant_id": tenant_id, "most": MOST, "looked_at": _LOOKED_AT}
    found = [Need(row[0], row[1], Run(*row[2:])) for row in connection.execute(_OF_TENANT, values)]
    return [one for one in found if is_needed(one.run, one.published)]


def is_needed(run: runs.Run, published: int | None) -> bool:
    """Whether somebody has to do something about a catalogue whose newest run this is."""
    return run.state in ("reviewing", "failed") or (run.state == "kept" and run.version != (published or 0))
