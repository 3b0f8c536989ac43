"""Tenants: their names, weights, states and quotas. The first one is the operator's: its administrators administer all.

Each act is an event of the operator's tenant, so that it stays when a tenant goes. A suspended tenant takes no new work
and none of its images is claimed; what it has can be read, cancelled and deleted.

Functions take an open system transaction and never commit.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, exc

from services.core.db.statements import statement
from services.core.events import log
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound
from services.core.model.quotas import NAMES, Quotas
from services.core.model.tenant_requests import NAME, PREFIX, QuotaChanges, TenantChanges, TenantRequest

_COLUMNS = ", ".join(f"max_{name}" for name in NAMES)
_OPERATOR = "(SELECT min(id) FROM tenants WHERE operator)"
_LIST = statement("tenants.list")(f"""
SELECT id, name, weight, state, created_at, operator, {_COLUMNS} FROM tenants
WHERE (id = :id OR name = :name OR :every) AND (id > :after) ORDER BY id LIMIT :limit
""")  # noqa: S608  our own text
_LOCK = statement("tenants.lock")("SELECT deleted_at FROM tenants WHERE id = :id FOR NO KEY UPDATE")
# It begins where the busiest ones are, and owes nobody the time before it was made.
_NEW = statement("tenants.new")(f"""
INSERT INTO tenants (name, weight, virtual_time, {_COLUMNS})
VALUES (:name, :weight, (SELECT coalesce(max(virtual_time), 0) FROM tenants), {", ".join(f":{name}" for name in NAMES)})
RETURNING id
""")  # noqa: S608  our own text
_SET = statement("tenants.set")(f"""
UPDATE tenants SET name = :name, weight = :weight, state = :state, {", ".join(f"max_{n} = :{n}" for n in NAMES)}
WHERE id = :id
""")  # noqa: S608  our own text
_LOG = statement("tenants.log")(f"""
WITH acted AS (SELECT {_OPERATOR} AS tenant_id, CAST(:id AS integer) AS id)
{log.of_each("acted", "CAST(:kind AS text)", subject="'tenant/' || id", data="CAST(:data AS jsonb)")}
""")
_UNIQUE = "23505"


@dataclass(frozen=True, slots=True)
class Tenant:
    """`operator`: the first tenant, whose administrators administer every tenant. `state` is active or suspended."""

    id: int
    name: str
    weight: float
    state: str
    created_at: datetime
    operator: bool
    quotas: Quotas


def public_id(number: int) -> str:
    return ids.public(PREFIX, number)


def listed(connection: Connection, *, after: int = 0, limit: int = 10_000, only: int | None = None) -> list[Tenant]:
    """The tenants by id, from the one behind `after` on; or the one tenant `only`."""
    values = {"id": only, "name": None, "every": only is None, "after": after, "limit": limit}
    return [_tenant(row) for row in connection.execute(_LIST, values)]


def find(connection: Connection, asked: int | str) -> Tenant:
    """By number, public id or name. Raises NotFound."""
    number, name = (asked, None) if isinstance(asked, int) else (None, asked)
    if name is not None and name.startswith(PREFIX):
        number, name = ids.parse(PREFIX, name, "tenant"), None
    if (number is not None and number >= 2**31) or (name is not None and not re.fullmatch(NAME, name, re.ASCII)):
        raise NotFound("There is no such tenant.")
    values = {"id": number, "name": name, "every": False, "after": 0, "limit": 1}
    row = connection.execute(_LIST, values).one_or_none()
    if row is None:
        raise NotFound("There is no such tenant.")
    return _tenant(row)


def create(connection: Connection, asked: TenantRequest) -> Tenant:
    """Raises Conflict: the name is taken, or it looks like an id."""
    _assert_no_id(asked.name)
    given = _changed(Quotas(), asked.quotas)
    weight = 1.0 if asked.weight is None else asked.weight
    with _named(asked.name):
        number = connection.execute(_NEW, {"name": asked.name, "weight": weight, **asdict(given)}).scalar_one()
    moved = _moved({"weight": 1.0, **asdict(Quotas())}, {"weight": weight, **asdict(given)})
    _log(connection, number, "tenant.created", asked.name, moved)
    return find(connection, int(number))


def change(connection: Connection, number: int, asked: TenantChanges) -> Tenant:
    """Raises NotFound, or Conflict: the name is taken, the operator's own tenant would be suspended, or the tenant is
    being deleted."""
    if connection.execute(_LOCK, {"id": number}).scalar_one_or_none() is not None:
        raise Conflict("The tenant is being deleted; nothing of it can be changed any more.", "being_deleted")
    before = find(connection, number)
    after = {
        "name": before.name if asked.name is None else asked.name,
        "weight": before.weight if asked.weight is None else asked.weight,
        "state": before.state if asked.state is None else asked.state,
        **asdict(_changed(before.quotas, asked.quotas)),
    }
    _assert_no_id(after["name"])
    if after["state"] != "active" and before.operator:
        raise Conflict("The operator's own tenant cannot be suspended; nobody could make it active again.", "operator")
    moved = _moved(
        {"name": before.name, "weight": before.weight, "state": before.state, **asdict(before.quotas)}, after
    )
    if not moved:
        return before
    with _named(after["name"]):
        connection.execute(_SET, {"id": number, **after})
    kind = {"suspended": "tenant.suspended", "active": "tenant.activated"}.get(moved.pop("state", ""), "tenant.changed")
    _log(connection, number, kind, before.name, moved)
    return find(connection, number)


def _log(connection: Connection, number: int, kind: str, name: str, moved: Mapping[str, Any]) -> None:
    """`set` in the event's data: what was set, as NAME=VALUE, by commas."""
    words = [f"{field}={_word(value)}" for field, value in moved.items()]
    data = {"name": name, **({"set": ", ".join(words)} if words else {})}
    connection.execute(_LOG, {"id": number, "kind": kind, "data": json.dumps(data)})


def _word(value: object) -> str:
    return "none" if value is None else f"{value:.15g}" if isinstance(value, float) else str(value)


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in after.items() if before[name] != value}


def _changed(before: Quotas, asked: QuotaChanges | None) -> Quotas:
    given = {} if asked is None else {name: getattr(asked, name) for name in asked.model_fields_set}
    return Quotas(**{**asdict(before), **given})


def _assert_no_id(name: str) -> None:
    if name.startswith(PREFIX):
        raise Conflict(f"A tenant's name does not begin with {PREFIX}, as ids do; give it another.", "invalid_name")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns the refusal of a name that is taken into a sentence."""
    try:
        yield
    except exc.IntegrityError as error:
        if getattr(error.orig, "sqlstate", None) != _UNIQUE:
            raise
        message = f"There is a tenant {name} already; give this one another name."
        raise Conflict(message, "name_taken") from None


def _tenant(row: Any) -> Tenant:
    quotas = Quotas(**{name: getattr(row, f"max_{name}") for name in NAMES})
    return Tenant(row.id, row.name, float(row.weight), row.state, row.created_at, row.operator, quotas)
