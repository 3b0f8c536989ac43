"""The background task that submits a run: its job and the run's mark are one transaction.

If its process dies before that commit, nothing is there, and the next holder of the lease begins again. If it dies
after it, the run is no longer pending. A holder that was paused past its lease finds it lost and writes nothing.
"""

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from sqlalchemy import Connection

from services.core.catalogues import catalogue_runs
from services.core.crash_points import crash_point
from services.core.db import actors
from services.core.db.leases import Lease
from services.core.db.turns import Waiting
from services.core.jobs import lifecycle
from services.core.jobs.inputs import Inputs
from services.core.model.errors import Conflict, InvalidSubmission, NotAdmitted, NotFound
from services.core.notify import Notifier
from services.core.schedules import runs, targets
from services.core.schedules.runs import RunState
from services.core.settings import Settings
from services.core.storage.contract import ImageStore


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    return runs.pending(connection, excluding, busy)


def run(settings: Settings, store: ImageStore, notifier: Notifier, run_id: int, lease: Lease) -> None:
    """Submits the run, or refuses it with the reason. Raises Unavailable: it is tried again later."""
    with lease.begin() as connection:
        found = runs.to_submit(connection, run_id)
        if found is None:
            return
        labels = {"schedule": found.name, "scheduled_for": f"{found.instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        ground = targets.ground(
            connection, settings, found.tenant_id, found.base_url, labels, lease.begin, deadline=found.deadline_at,
            pictures=Inputs(settings, lease.begin, store, found.tenant_id),
        )  # fmt: skip
    with actors.acting(f"schedule/{found.name}"):
        if found.overlap == "cancel":
            with lease.begin() as connection:
                _cancel_before(connection, found)
            crash_point("schedule.cancelled")
        try:
            models = _submit(ground, found, lease)
        except (InvalidSubmission, NotFound, NotAdmitted) as error:
            with lease.begin() as connection:
                runs.refuse(connection, run_id, str(error))
            return
    crash_point("schedule.submitted")
    for model in models:  # if it is lost, the workers' timers find the job within seconds
        notifier.notify(model)


def _submit(ground: targets.Ground, found: Any, lease: Lease) -> frozenset[str]:
    """Records the job and that the run has it. Returns the models that wait for it."""
    with targets.ordered(ground, found.target_kind, found.target, lease.keep) as record, lease.begin() as connection:
        if not runs.hold(connection, found.id):  # skipped meanwhile, or its schedule was deleted
            return frozenset()
        recorded = record(connection)
        runs.submitted(connection, found.id, recorded.job_id, recorded.catalogue_run_id)
    return recorded.models


def _cancel_before(connection: Connection, found: Any) -> None:
    """Cancels what earlier runs have begun. It may be repeated."""
    for before in runs.live(connection, found.schedule_id):
        if before.state == RunState.RUNNING and before.instant < found.instant:
            try:
                if before.catalogue_run_id is not None:
                    catalogue_runs.cancel_any(connection, before.catalogue_run_id)
                else:
                    lifecycle.cancel(connection, found.tenant_id, before.job_id)
            except (Conflict, NotFound):  # it has ended, or is deleted
                pass
