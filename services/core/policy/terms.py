"""The terms that a tenant's content policy refuses. Events about them name a term by its number, never its text.

Functions take the tenant's open transaction and never commit.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.model import ids, terms
from services.core.model.errors import Conflict, NotFound

MOST = 5_000  # of a tenant
_SUBJECT = "'policy_term/' || id"
_LOCK = statement("terms.lock")("SELECT pg_advisory_xact_lock(7209419, :tenant_id)")
_COUNT = statement("terms.count")("SELECT count(*) FROM policy_terms WHERE tenant_id = :tenant_id")
_NEW = statement("terms.new")(f"""
WITH made AS (
  INSERT INTO policy_terms (id, tenant_id, term, folded, created_by)
  VALUES (:id, :tenant_id, :term, :folded, {log.ACTOR})
  ON CONFLICT (tenant_id, folded) DO NOTHING RETURNING id, tenant_id
)
{log.of_each("made", "'policy.term_added'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_DELETE = statement("terms.delete")(f"""
WITH gone AS (
  DELETE FROM policy_terms WHERE tenant_id = :tenant_id AND id = :id RETURNING id, tenant_id
)
{log.of_each("gone", "'policy.term_removed'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_LIST = """
SELECT id, term, folded, created_by, created_at FROM policy_terms
WHERE tenant_id = :tenant_id AND {which} ORDER BY folded LIMIT :limit
"""
_PAGE = statement("terms.page")(_LIST.format(which="folded > :after"))
_BY_FOLDING = statement("terms.by_folding")(_LIST.format(which="folded = :folded"))
_BY_ID = statement("terms.by_id")(_LIST.format(which="id = :id"))
_ALL = statement("terms.all")("SELECT term FROM policy_terms WHERE tenant_id = :tenant_id")


@dataclass(frozen=True, slots=True)
class Term:
    """`folded` is what prompts are compared with. `created_by` is an actor."""

    id: int
    term: str
    folded: str
    created_by: str
    created_at: datetime


def public_id(number: int) -> str:
    return ids.public("term_", number)


def parse_id(public: str) -> int:
    """Raises NotFound."""
    return ids.parse("term_", public, "term")


def add(connection: Connection, tenant_id: int, term: str) -> tuple[Term, bool]:
    """The term, and whether it is new: a term of the same folding may be there already.

    Raises:
        ValueError: it holds no letter and no digit.
        Conflict: there are too many.
    """
    folding = terms.folded(term)
    if not folding:
        raise ValueError("it has no letter and no digit")
    connection.execute(_LOCK, {"tenant_id": tenant_id})
    known = connection.execute(_BY_FOLDING, {"tenant_id": tenant_id, "folded": folding, "limit": 1}).one_or_none()
    if known is not None:
        return Term(*known), False
    if int(connection.execute(_COUNT, {"tenant_id": tenant_id}).scalar_one()) >= MOST:
        raise Conflict(
            f"There are {MOST:,} terms, which is as many as there may be; a prompt policy of your own can know more.",
            "too_many_terms",
        )
    number = ids.new()
    connection.execute(_NEW, {"id": number, "tenant_id": tenant_id, "term": term, "folded": folding})
    return Term(*connection.execute(_BY_ID, {"tenant_id": tenant_id, "id": number, "limit": 1}).one()), True


def remove(connection: Connection, tenant_id: int, number: int) -> None:
    """Raises NotFound."""
    if not connection.execute(_DELETE, {"tenant_id": tenant_id, "id": number}).rowcount:
        raise NotFound("There is no such term.")


def find(connection: Connection, tenant_id: int, term: str) -> Term | None:
    """The term of that folding."""
    values = {"tenant_id": tenant_id, "folded": terms.folded(term), "limit": 1}
    row = connection.execute(_BY_FOLDING, values).one_or_none()
    return None if row is None else Term(*row)


def page(connection: Connection, tenant_id: int, *, after: str = "", limit: int) -> list[Term]:
    """The terms whose folding is behind `after`, in that order."""
    rows = connection.execute(_PAGE, {"tenant_id": tenant_id, "after": after, "limit": limit})
    return [Term(*row) for row in rows]


def texts(connection: Connection, tenant_id: int) -> list[str]:
    """All of the tenant's terms."""
    return list(connection.execute(_ALL, {"tenant_id": tenant_id}).scalars())
