"""What is done to each job, which jobs it can be done to, and how many of their images it touches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.core.bulk.asked import Verb
from services.core.db.database import Connection
from services.core.deletion import jobs as deletion
from services.core.jobs import lifecycle, queries, retry
from services.core.model import requests, states
from services.core.model.states import JobState
from services.core.policy.policies import Policy

Options = dict[str, Any]
Models = list[str]
_UNFINISHED = frozenset(JobState) - states.FINAL_JOB_STATES - {JobState.CANCELLING}


@dataclass(frozen=True, slots=True)
class Act:
    """One verb. `paused`: only jobs that are, or are not. `images`: whose counts are touched. `run` does it to one job
    and returns the models whose workers are to wake up; it raises Conflict or NotFound if the job lost the race."""

    states: frozenset[JobState]
    images: tuple[str, ...]
    run: Callable[[Connection, int, int, Options, Policy], Models]
    paused: bool | None = None
    with_failures: bool = False


def _cancel(connection: Connection, tenant_id: int, job_id: int, _options: Options, _policy: Policy) -> Models:
    lifecycle.cancel(connection, tenant_id, job_id)
    return []


def _pause(connection: Connection, tenant_id: int, job_id: int, _options: Options, _policy: Policy) -> Models:
    lifecycle.pause(connection, tenant_id, job_id, True)
    return []


def _resume(connection: Connection, tenant_id: int, job_id: int, _options: Options, _policy: Policy) -> Models:
    lifecycle.pause(connection, tenant_id, job_id, False)
    return queries.models_of(connection, job_id)


def _retry(connection: Connection, tenant_id: int, job_id: int, options: Options, policy: Policy) -> Models:
    asked = requests.RetryOptions(include_cancelled=bool(options.get("include_cancelled")))
    return retry.retry(connection, tenant_id, job_id, asked, policy=policy).models


def _prioritize(connection: Connection, tenant_id: int, job_id: int, options: Options, _policy: Policy) -> Models:
    lifecycle.change(connection, tenant_id, job_id, priority=requests.PRIORITIES[options["priority"]])
    return []


def _delete(connection: Connection, tenant_id: int, job_id: int, _options: Options, _policy: Policy) -> Models:
    deletion.delete(connection, tenant_id, job_id)
    return []


_ACTS: dict[Verb, Act] = {
    "cancel": Act(_UNFINISHED - {JobState.FINALIZING}, ("queued", "rendering"), _cancel),
    "pause": Act(states.CLAIMABLE_JOB_STATES, ("queued",), _pause, paused=False),
    "resume": Act(states.CLAIMABLE_JOB_STATES, ("queued",), _resume, paused=True),
    "retry": Act(states.FINAL_JOB_STATES, ("failed",), _retry, with_failures=True),
    "prioritize": Act(_UNFINISHED, ("queued",), _prioritize),
    "delete": Act(states.FINAL_JOB_STATES | {JobState.DRAFT}, ("done", "failed", "cancelled", "queued"), _delete),
}


def act(verb: Verb, options: Options) -> Act:
    found = _ACTS[verb]
    if options.get("except_running"):
        return Act(found.states - {JobState.IN_PROGRESS}, found.images, found.run, found.paused)
    if options.get("include_cancelled"):
        return Act(found.states, ("failed", "cancelled"), found.run, found.paused)
    return found
