"""Which licences a tenant has accepted: who accepted what was shown of a licence, and when.

What was shown is the licence as the model card names it, with its link and the restrictions that are known of it
(`model/licenses.py`); its sha256 is what is accepted, so that a licence with other words is accepted anew. Functions take
an open transaction and never commit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

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


@dataclass(frozen=True, slots=True)
class Acceptance:
    """`by` is an actor, and `by_name` its name if it is a key."""

    by: str
    by_name: str | None
    at: datetime

    def as_json(self) -> dict[str, str | None]:
        return {"by": self.by, "by_name": self.by_name, "at": self.at.isoformat()}


class Acceptances:
    """Those of one tenant at one moment."""

    def __init__(self, by_sha256: dict[bytes, Acceptance]) -> None:
        self._by_sha256 = by_sha256

    def of(self, license: License) -> Acceptance | None:
        return self._by_sha256.get(license.sha256)

    def missing(self, licenses: Iterable[License | None]) -> list[License]:
        """Those that were not accepted; a model without a licence has nothing to accept."""
        return [one for one in licenses if one is not None and one.sha256 not in self._by_sha256]


def accepted(connection: Connection, tenant_id: int) -> Acceptances:
    """What the tenant has accepted."""
    rows = connection.execute(_ACCEPTED, {"tenant_id": tenant_id})
    return Acceptances(
        {bytes(row.sha256): Acceptance(row.accepted_by, row.accepted_by_name, row.accepted_at) for row in rows}
    )


def accept(connection: Connection, tenant_id: int, license: License) -> None:
    """Records that the tenant accepts the licence. Repeating it changes nothing."""
    values = {"tenant_id": tenant_id, "license": license.id, "sha256": license.sha256, "hex": license.sha256.hex()}
    connection.execute(_ACCEPT, values)
