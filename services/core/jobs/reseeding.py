"""Draws images of a job again with other seeds, in a new job that is linked to the old one.

The database copies the requests, so prompts, shapes, custom_ids and the model's revision are those of the old job. Each
image is a request of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db import columns, deadlines, partitions
from services.core.db.statements import statement
from services.core.jobs import retry
from services.core.policy.policies import Policy
from services.core.queue import job_states

_CHANGED = {"job_id": ":child", "index": "nth - 1", "n": "1", "seed": "given"}
_COPIED = ", ".join(_CHANGED.get(column.name, f"p.{column.name}") for column in columns.PAYLOAD)
_COPY = f"""
INSERT INTO {{payloads_leaf}} ({columns.names(columns.PAYLOAD)})
SELECT {_COPIED}
FROM (
  SELECT CAST(:parent AS bigint) AS job_id, index, given, nth
  FROM unnest(CAST(:indexes AS integer[]), CAST(:seeds AS bigint[])) WITH ORDINALITY AS wanted (index, given, nth)
) i
{columns.payload_of("i")}
"""  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Reseeded:
    """An image of the old job, and the seed that it gets."""

    index: int
    seed: int


def draw(
    connection: Connection, tenant_id: int, parent_id: int, child: int, wanted: Sequence[Reseeded], *, priority: int,
    policy: Policy,
) -> list[str]:  # fmt: skip
    """Queues the new job `child` with these images, in this order. Returns the names of its models. Raises NotFound:
    the tenant has no such parent."""
    parent = retry.lock_parent(connection, tenant_id, parent_id)
    retry.create_child(connection, tenant_id, parent_id, parent, child, priority=priority, labels=parent.labels)
    deadlines.lift(connection)
    copy = statement("reseeding.copy")(_COPY.format(payloads_leaf=partitions.leaf(connection, "payloads", child)))
    values = {"parent": parent_id, "child": child}
    given = {"indexes": [one.index for one in wanted], "seeds": [one.seed for one in wanted]}
    connection.execute(copy, values | given)
    job_states.grow(connection, child, images=len(wanted), requests=len(wanted))
    return retry.open_child(connection, parent_id, child, priority=priority, policy=policy)
