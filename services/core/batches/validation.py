"""The background task that reads a batch job's file: it checks every line, then records all images in one transaction.

If its process dies, nothing is lost or left over: nothing is written before the one commit, and the next holder of the
lease reads the file again.
"""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from services.core import traces
from services.core.batches import batch_jobs, line_format
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.db.turns import Waiting
from services.core.fleet import models
from services.core.jobs import inputs, submissions
from services.core.model import strict_json
from services.core.model.errors import InvalidSubmission, NoModels, ObjectMissing, Problem, QuotaExceeded
from services.core.model.states import JobState
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.policy.refusals import Door
from services.core.queue import job_states
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

_KEEP_LINES = 500
_BLANK_LINES = 1_000  # at the end; a file of only blank lines would occupy a thread for minutes


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    return batch_jobs.validating(connection, excluding, busy)


def run(settings: Settings, store: ImageStore, notifier: Notifier, job_id: int, lease: Lease) -> None:
    """Moves the job to `queued`, or to `failed` with up to 100 problems, each with its line.

    Raises NoModels, so that a file waits for the first worker: it was accepted, and no line of it is wrong.
    """
    with lease.begin() as connection:
        source = batch_jobs.source(connection, job_id)
        registry = models.registry(connection)
        policy = policies.at(settings, connection, Door("batch", source.tenant_id))
    if source.state != JobState.VALIDATING:  # read or cancelled in the meantime
        return
    if not registry:
        raise NoModels
    pictures = inputs.Inputs(settings, lease.begin, store, source.tenant_id)
    existing = submissions.ExistingJob(job_id)
    with (
        traces.span("validate", parent=source.traceparent),
        submissions.Submission(settings, registry, policy=policy, existing=existing, pictures=pictures) as submission,
    ):
        try:
            if source.object_key is None:
                raise InvalidSubmission([Problem("file_gone", "The input file has been deleted.", "input_file_id")])
            _read(settings, store, source.object_key, submission, lease)
            submission.close()
        except InvalidSubmission as error:
            with lease.begin() as connection:
                job_states.refuse(connection, job_id, error.problems)
            return
        try:
            with lease.begin() as connection:
                opened = batch_jobs.accept(connection, submission)
        except QuotaExceeded as error:
            pictures.drop(undone=True)
            with lease.begin() as connection:
                job_states.refuse(connection, job_id, [Problem("quota_exceeded", str(error))])
            return
    crash_point("batch.validated")
    if opened:  # if this is lost, a periodic task and the workers' timers find the job within seconds
        for model in submission.models:
            notifier.notify(model)


def _read(settings: Settings, store: ImageStore, key: str, submission: submissions.Submission, lease: Lease) -> None:
    blank = number = 0
    try:
        for number, line in enumerate(line_format.split(store.stream(key)), 1):
            if number % _KEEP_LINES == 0:
                lease.keep()
            if submission.has_too_many_problems:
                return
            if not line or line.isspace():
                blank = blank or number
                if number - blank > _BLANK_LINES:
                    message = f"More than {_BLANK_LINES:,} blank lines follow one another."
                    submission.refuse(Problem("blank_line", message, None, blank))
                    return
                continue
            if blank:
                submission.refuse(Problem("blank_line", "There is a blank line between requests.", None, blank))
                blank = 0
            if number > settings.max_lines_per_file:
                message = f"A file has at most {settings.max_lines_per_file:,} lines; send the rest as another."
                submission.refuse(Problem("too_many_lines", message, None, number))
                return
            _add(submission, line.removeprefix(strict_json.BYTE_ORDER_MARK) if number == 1 else line, number)
        if not number:
            message = "The file is empty; it must hold one request a line."
            submission.refuse(Problem("empty_file", message, None, None))
    except line_format.LineTooLong as error:
        submission.refuse(Problem("line_too_long", str(error), None, error.number))
    except ObjectMissing:
        submission.refuse(Problem("file_gone", "The input file is not in the object store any more.", None, None))


def _add(submission: submissions.Submission, line: bytes, number: int) -> None:
    fields, problems = line_format.read_line(line, number)
    for problem in problems:
        submission.refuse(problem)
    if not problems:
        known = len(submission.problems)
        submission.add(number, fields, "body.")
        submission.problems[known:] = map(_beside_body, submission.problems[known:])


def _beside_body(problem: Problem) -> Problem:
    """Corrects the path of a problem with custom_id, which is beside the line's body."""
    if problem.param != "body.custom_id":
        return problem
    return replace(problem, param="custom_id", message=problem.message.replace("body.custom_id", "custom_id", 1))
