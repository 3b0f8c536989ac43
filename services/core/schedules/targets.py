"""What a schedule submits: a kind of target by its name, each with three functions.

`check` says what is wrong with a target, `find` whether what it names is there, and `order` prepares what is then
recorded in one transaction together with the run. A further kind is one class and one line in `KINDS`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field, ValidationError
from sqlalchemy import Connection

from services.core.batches import batch_jobs
from services.core.catalogues import catalogue_runs, catalogues
from services.core.files import files
from services.core.fleet import models
from services.core.fleet.models import Registry
from services.core.jobs.inputs import Inputs
from services.core.jobs.submission_body import SubmissionBody
from services.core.jobs.submissions import Submission, Trial
from services.core.model import ids, requests, strict_json
from services.core.model.body import Body
from services.core.model.errors import Conflict, InvalidSubmission, NoModels, NotFound, Problem
from services.core.policy import policies
from services.core.policy.policies import Policy
from services.core.policy.refusals import Begin, Door
from services.core.schedules.asked import ALLOWED
from services.core.settings import Settings

_KEEP_REQUESTS = 500


@dataclass(frozen=True, slots=True)
class Ground:
    """What a target is checked against, and what its job gets from its schedule."""

    settings: Settings
    registry: Registry
    tenant_id: int
    base_url: str
    labels: dict[str, str]
    policy: Policy
    deadline: datetime | None = None
    pictures: Inputs | None = None


class Recorded(NamedTuple):
    """The job of a run and the models that wait for it, whose workers are woken up; or the run of a catalogue."""

    job_id: int | None
    models: frozenset[str]
    catalogue_run_id: int | None = None


Record = Callable[[Connection], Recorded]


class Target(Protocol):
    def check(self, ground: Ground, body: dict[str, Any]) -> None:
        """Raises InvalidSubmission with every problem. No transaction may be open: a content policy may take its time,
        and what it refuses is recorded."""

    def find(self, connection: Connection, tenant_id: int, body: dict[str, Any]) -> None:
        """Raises InvalidSubmission: something that it names is not there."""

    def order(self, ground: Ground, body: dict[str, Any], keep: Callable[[], None]) -> Iterator[Record]:
        """Yields once: a function that records a job in an open transaction. Calls `keep` while it takes long.

        Raises InvalidSubmission or NotFound, also from that function: the run is refused.
        """


class JobTarget:
    """A body as POST /v1/jobs takes it."""

    def check(self, ground: Ground, body: dict[str, Any]) -> None:
        order, _ = _read(ground, body)
        with Trial(ground.settings, ground.registry, policy=ground.policy, defaults=order.defaults) as trial:
            order.fill(trial)
            trial.check()

    def find(self, connection: Connection, tenant_id: int, body: dict[str, Any]) -> None:
        """Its pictures are looked for when it is submitted."""

    def order(self, ground: Ground, body: dict[str, Any], keep: Callable[[], None]) -> Iterator[Record]:
        if not ground.registry:
            raise NoModels
        order, label = _read(ground, body)
        label.labels = label.labels | ground.labels
        with _KeptSubmission(
            ground.settings, ground.registry, policy=ground.policy, defaults=order.defaults, pictures=ground.pictures
        ) as submission:
            submission.keep = keep
            order.fill(submission)
            submission.close()

            def record(connection: Connection) -> Recorded:
                receipt = submission.create(connection, ground.tenant_id, label)
                return Recorded(receipt.job_id, receipt.models)

            yield record


class BatchRequest(Body):
    """A batch: a file that is read when the run is due."""

    ALLOWED: ClassVar = {
        "input_file_id": "the id of an uploaded file",
        "completion_window": f'hours or days, such as "24h" or "7d", up to {batch_jobs.MAX_DAYS} days',
        **{name: requests.ALLOWED[name] for name in ("labels", "priority", "dedupe", "embed_prompt", "store")},
    }
    input_file_id: Annotated[str, Field(max_length=40)]
    completion_window: Annotated[str, Field(max_length=8)] = "24h"
    labels: requests.Labels = Field(default_factory=dict)
    priority: Literal["high", "normal", "low"] = "normal"
    dedupe: bool = False
    embed_prompt: bool = False
    store: requests.Store = "objects"


class BatchTarget:
    """The id of an uploaded file, which every run reads anew."""

    def check(self, ground: Ground, body: dict[str, Any]) -> None:
        del ground
        _read_batch(body)

    def find(self, connection: Connection, tenant_id: int, body: dict[str, Any]) -> None:
        asked, _ = _read_batch(body)
        _file(connection, tenant_id, asked.input_file_id)

    def order(self, ground: Ground, body: dict[str, Any], keep: Callable[[], None]) -> Iterator[Record]:
        del keep
        asked, seconds = _read_batch(body)

        def record(connection: Connection) -> Recorded:
            job_id = ids.new()
            batch_jobs.create(
                connection, ground.tenant_id, job_id=job_id,
                input_file_id=_file(connection, ground.tenant_id, asked.input_file_id),
                priority=requests.PRIORITIES[asked.priority], labels=asked.labels | ground.labels, dedupe=asked.dedupe,
                embed_prompt=asked.embed_prompt, completion_window=asked.completion_window, window_seconds=seconds,
                output_expires_seconds=None, base_url=ground.base_url, in_shards=asked.store == "shards",
            )  # fmt: skip
            return Recorded(job_id, frozenset())

        yield record


class CatalogueRequest(Body):
    """A catalogue that is brought up to date."""

    ALLOWED: ClassVar = {"name": "the name of a catalogue"}
    name: Annotated[str, Field(max_length=64)]


class CatalogueTarget:
    """A catalogue by its name. At the deadline its run writes what there is."""

    def check(self, ground: Ground, body: dict[str, Any]) -> None:
        del ground
        _read_catalogue(body)

    def find(self, connection: Connection, tenant_id: int, body: dict[str, Any]) -> None:
        _catalogue(connection, tenant_id, body)

    def order(self, ground: Ground, body: dict[str, Any], keep: Callable[[], None]) -> Iterator[Record]:
        del keep

        def record(connection: Connection) -> Recorded:
            catalogue = _catalogue(connection, ground.tenant_id, body)
            try:
                run_id = catalogue_runs.begin(connection, catalogue, deadline=ground.deadline)
            except Conflict as error:
                raise InvalidSubmission([Problem(error.code, str(error))]) from None
            return Recorded(None, frozenset(), run_id)

        yield record


KINDS: dict[str, Target] = {"job": JobTarget(), "batch": BatchTarget(), "catalogue": CatalogueTarget()}


class Checked(NamedTuple):
    """A target with which nothing is wrong: its kind, and its body as text."""

    kind: str
    text: str


def check(ground: Ground, target: dict[str, Any]) -> Checked:
    """Checks a target, but for what it names. No transaction may be open. Raises InvalidSubmission."""
    kind, body = next(iter(target.items()), ("", None))
    if len(target) != 1 or kind not in KINDS or not isinstance(body, dict):
        found = "an object with " + ", ".join(map(strict_json.describe, list(target)[:5])) if target else "empty"
        if len(target) == 1 and kind in KINDS:
            found = f"an object in which {kind} is {strict_json.describe(body)}"
        message = f"target is {found}; it must be {ALLOWED['target']}."
        raise InvalidSubmission([Problem("invalid_value", message, "target")])
    text = json.dumps(body)
    with _inside(kind):
        KINDS[kind].check(ground, json.loads(text))  # a copy: reading takes parts out of it
    return Checked(kind, text)


def find(connection: Connection, tenant_id: int, checked: Checked) -> None:
    """Looks for what the target names. Raises InvalidSubmission."""
    with _inside(checked.kind):
        KINDS[checked.kind].find(connection, tenant_id, json.loads(checked.text))


@contextmanager
def ordered(ground: Ground, kind: str, text: str, keep: Callable[[], None]) -> Iterator[Record]:
    yield from KINDS[kind].order(ground, json.loads(text), keep)


def ground(
    connection: Connection, settings: Settings, tenant_id: int, base_url: str, labels: dict[str, str],
    begin: Begin, *, deadline: datetime | None = None, pictures: Inputs | None = None,
) -> Ground:  # fmt: skip
    """`begin` begins a transaction for the record of what the content policy refuses."""
    policy = policies.at(settings, connection, Door("schedule", tenant_id, begin))
    return Ground(settings, models.registry(connection), tenant_id, base_url, labels, policy, deadline, pictures)


class _KeptSubmission(Submission):
    """A submission that may take longer than the lease of whoever reads it."""

    keep: Callable[[], None]

    def add(self, place: int, value: object, prefix: str = "") -> None:
        if place % _KEEP_REQUESTS == _KEEP_REQUESTS - 1:
            self.keep()
        super().add(place, value, prefix)


def _read(ground: Ground, body: dict[str, Any]) -> tuple[SubmissionBody, requests.JobOptions]:
    order = SubmissionBody.of(body, ground.settings.max_images_per_job)
    return order, order.head(requests.JobOptions, body, requests.JobOptions())


def _read_batch(body: dict[str, Any]) -> tuple[BatchRequest, int]:
    try:
        asked = BatchRequest.model_validate(body)
    except ValidationError as error:
        raise InvalidSubmission(requests.problems(error, body, allowed=BatchRequest.ALLOWED)) from None
    seconds = batch_jobs.window_seconds(asked.completion_window)
    if seconds is None:
        found, rule = strict_json.describe(asked.completion_window), BatchRequest.ALLOWED["completion_window"]
        message = f"completion_window is {found}; it must be {rule}."
        raise InvalidSubmission([Problem("invalid_value", message, "completion_window")])
    return asked, seconds


def _read_catalogue(body: dict[str, Any]) -> CatalogueRequest:
    try:
        return CatalogueRequest.model_validate(body)
    except ValidationError as error:
        raise InvalidSubmission(requests.problems(error, body, allowed=CatalogueRequest.ALLOWED)) from None


def _catalogue(connection: Connection, tenant_id: int, body: dict[str, Any]) -> catalogues.Catalogue:
    asked = _read_catalogue(body)
    try:
        return catalogues.find(connection, tenant_id, asked.name)
    except NotFound:
        message = f"There is no catalogue {strict_json.describe(asked.name)}."
        raise InvalidSubmission([Problem("no_such_catalogue", message, "name")]) from None


def _file(connection: Connection, tenant_id: int, public: str) -> int:
    try:
        file = files.find(connection, tenant_id, files.parse_id(public))
    except NotFound:
        file = None
    if file is None or file.purpose != "batch":
        message = f'There is no input file {strict_json.describe(public)}; upload one with the purpose "batch".'
        raise InvalidSubmission([Problem("no_such_file", message, "input_file_id")])
    return file.id


@contextmanager
def _inside(kind: str) -> Iterator[None]:
    """Problems of the target's body are named with their place in the target."""
    try:
        yield
    except InvalidSubmission as error:
        problems = [
            replace(problem, param=f"target.{kind}" + (f".{problem.param}" if problem.param else ""))
            for problem in error.problems
        ]
        raise InvalidSubmission(problems, more=error.more) from None
