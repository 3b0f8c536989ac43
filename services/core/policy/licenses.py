"""Which licences a tenant has accepted: who accepted what was shown of a licence, and when.

What was shown is the licence as the model card names it, with its link and the restrictions that are known of it
(`model/licenses.py`); its sha256 is what is accepted, so that a licence with other words is accepted anew. Functions
take an open transaction and never commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.model.licenses import License

_ACCEPT = statement("licenses.accept")(f"""
WITH made AS (
  INSERT INTO license_acceptances (tenant_id, license, sha256, accepted_by)
  VALUES (:tenant_id, :license, :sha256, {log.ACTOR})
  ON CONFLICT (tenant_id, license, sha256) DO NOTHING RETURNING tenant_id, license
)
{
    log.of_each(
        "made",
        "'license.accepted'",
        subject="'license/' || license",
        data="jsonb_build_object('license', license, 'sha256', CAST(:hex AS text))",
    )
}
""")  # noqa: S608  our own text
_ACCEPTED = statement("licenses.accepted")("""
SELECT a.sha256, a.accepted_by, k.name AS accepted_by_name, a.accepted_at FROM license_acceptances a
LEFT JOIN api_keys k ON k.id = CASE WHEN starts_with(a.accepted_by, 'key/') THEN substr(a.accepted_by, 5) END
WHERE a.tenant_id = :tenant_id
""")

_TENANT = statement("licenses.tenant")("SELECT tenant_id FROM jobs WHERE id = ANY(:job_ids) LIMIT 1")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """`by` is an actor, and `by_name` its name if it is a key."""

    by: str
    by_name: str | None
    at: datetime


class Acceptances:
    """Those of one tenant at one moment."""

    def __init__(self, by_sha256: dict[bytes, Acceptance]) -> None:
        self._by_sha256 = by_sha256

    def of(self, given: License) -> Acceptance | None:
        return self._by_sha256.get(given.sha256)

    def beside(self, given: License) -> License:
        """The licence with who accepted it and when."""
        found = self.of(given)
        if found is None:
            return given
        at = found.at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return replace(given, accepted_by=found.by_name or found.by, accepted_at=at)


def accepted(connection: Connection, tenant_id: int) -> Acceptances:
    """What the tenant has accepted."""
    rows = connection.execute(_ACCEPTED, {"tenant_id": tenant_id})
    return Acceptances(
        {bytes(row.sha256): Acceptance(row.accepted_by, row.accepted_by_name, row.accepted_at) for row in rows}
    )


def of_jobs(connection: Connection, job_ids: Sequence[int]) -> Acceptances:
    """What the tenant of these jobs has accepted."""
    tenant = connection.execute(_TENANT, {"job_ids": list(job_ids)}).scalar_one_or_none()
    return Acceptances({}) if tenant is None else accepted(connection, tenant)


def accept(connection: Connection, tenant_id: int, given: License) -> None:
    """Records that the tenant accepts the licence. Repeating it changes nothing."""
    values = {"tenant_id": tenant_id, "license": given.id, "sha256": given.sha256, "hex": given.sha256.hex()}
    connection.execute(_ACCEPT, values)
