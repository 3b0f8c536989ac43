"""What users do to a job: cancel, pause, resume, change. The queue writes; this file turns refusals into errors.

Functions take an open transaction and never commit.
"""

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model import states
from services.core.model.errors import Conflict, NotFound
from services.core.model.states import JobState
from services.core.queue import job_states

_STATE = statement("lifecycle.state")("SELECT state FROM jobs WHERE id = :id AND tenant_id = :tenant_id")


def cancel(connection: Connection, tenant_id: int, job_id: int) -> None:
    """From this commit on, no image of the job is claimed or becomes done. A second call is not an error.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: the job has finished.
    """
    if job_states.cancel(connection, tenant_id, job_id):
        return
    state = _state(connection, tenant_id, job_id)
    if state not in (JobState.CANCELLING, JobState.CANCELLED):
        raise Conflict(f"The job is {state}; only a job that has not finished can be cancelled.")


def pause(connection: Connection, tenant_id: int, job_id: int, paused: bool) -> None:
    """Images of a paused job are not claimed; those that are being rendered go on. A second call is not an error.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: the job is neither queued nor in progress.
    """
    if job_states.pause(connection, tenant_id, job_id, paused):
        return
    state = _state(connection, tenant_id, job_id)
    if state in states.CLAIMABLE_JOB_STATES:
        return
    code = "job_finished" if state in states.FINAL_JOB_STATES else "job_not_queued"
    raise Conflict(f"The job is {state}; only one that is queued or in_progress can be paused and resumed.", code)


def change(
    connection: Connection,
    tenant_id: int,
    job_id: int,
    *,
    priority: int | None = None,
    labels: dict[str, str] | None = None,
) -> None:
    """Changes the priority of all images that are not claimed yet, or the job's labels. None: unchanged.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: the priority of a finished job cannot change.
    """
    _state(connection, tenant_id, job_id)
    if priority is not None and not job_states.set_priority(connection, tenant_id, job_id, priority):
        state = _state(connection, tenant_id, job_id)
        if state in states.FINAL_JOB_STATES:
            raise Conflict(f"The job is {state}; only one that has not finished has a priority.", "job_finished")
    if labels is not None:
        job_states.set_labels(connection, tenant_id, job_id, labels)


def finish(connection: Connection) -> list[int]:
    """Ends every job whose images are all final. Returns the ids of the jobs that reached their final state; a job that
    was submitted as a file stays `finalizing` until its output files are written."""
    job_states.finalize(connection)
    return job_states.finish_all(connection)


def _state(connection: Connection, tenant_id: int, job_id: int) -> str:
    state = connection.execute(_STATE, {"id": job_id, "tenant_id": tenant_id}).scalar_one_or_none()
    if state is None:
        raise NotFound("There is no such job.")
    return str(state)
