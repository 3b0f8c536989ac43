"""Records what the content policy refuses: who asked, at which door, and how many prompts; never a prompt.

A policy is made for a door, so no door can leave it out. What is refused as a whole is recorded by `Submission`, what
is kept as failed images by `queue/images.py`: nobody else calls `whole` or `kept`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection

from services.core.db import deferred
from services.core.events import log
from services.core.metrics import registry

REFUSED = registry.counter("presswork_refused_prompts_total")
Name = Literal["job", "image", "schedule", "draft", "batch", "catalogue", "retry", "redraw", "repair"]
for _name in get_args(Name):
    REFUSED.labels(_name)
Begin = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class Door:
    """A way in for a tenant's prompts. `begin` begins a transaction for the record of what is refused as a whole; None:
    the door takes in what arrives, and refused images are recorded as failed."""

    name: Name
    tenant_id: int
    begin: Begin | None = None


def whole(door: Door, prompts: int) -> None:
    """Nothing of the submission is recorded, so this is a transaction of its own, which is committed before the answer.
    Raises DatabaseUnavailable."""
    assert door.begin is not None, "a door that keeps refused images refuses nothing as a whole"
    with door.begin() as connection:
        _record(connection, door, {"prompts": prompts}, ())


def kept(connection: Connection, door: Door, job_id: int, prompts: int) -> None:
    """In the transaction that records the job's failed images."""
    _record(connection, door, {"prompts": prompts, "job": job_id}, (job_id,))


def _record(connection: Connection, door: Door, data: dict[str, int], which: tuple[int, ...]) -> None:
    log.append(
        connection,
        "policy.refused",
        f"tenant/{door.tenant_id}",
        tenant_id=door.tenant_id,
        data={"door": door.name, **data},
    )
    deferred.once(connection, ("refused prompts", *which), lambda: _count(door.name, data["prompts"]))


def _count(door: str, prompts: int) -> Callable[[Connection], None]:
    return lambda _connection: REFUSED.labels(door).inc(prompts)
