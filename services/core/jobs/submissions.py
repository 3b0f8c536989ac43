"""Submission: validates all requests, then records the job and all its images in one transaction.

Each request is checked as it is read and written, as a line for COPY, to a spool that moves to disk once it is large.
So memory stays constant, and the transaction only copies. A single problem refuses the whole submission. The first
rows of a large one may be copied while the others are being checked (`ahead.py`).
"""

import hashlib
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError
from sqlalchemy import Connection

from services.core import traces
from services.core.crash_points import crash_point
from services.core.db import columns, deadlines
from services.core.db.database import Database
from services.core.files.pictures import InvalidPicture
from services.core.fleet import served
from services.core.fleet.models import Registry
from services.core.jobs import idempotency, inputs, payloads
from services.core.jobs.ahead import Ahead
from services.core.model import ids, requests, strict_json
from services.core.model.body import with_defaults
from services.core.model.errors import InvalidSubmission, NotAdmitted, Problem
from services.core.model.specs import DRAWN_SEEDS, Shape
from services.core.model.states import JobState
from services.core.model.templates import Matrix
from services.core.policy import policies, refusals
from services.core.policy.policies import Policy
from services.core.queue import images, job_states, segments
from services.core.queue.images import Refused, Runs
from services.core.queue.job_states import NewJob
from services.core.settings import Settings

MAX_PROBLEMS = 100
MAX_SHAPES = 64
_MAX_CACHED = 10_000
_SCREENED_AT_ONCE = 1_024  # prompts
_SPOOL_MEMORY = 1 << 20
_SPOOL_ROWS = 1_000  # written at a time
_COPY_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Receipt:
    """The recorded job and the names of its models. `replayed`: this Idempotency-Key had already recorded it."""

    job_id: int
    models: frozenset[str]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class ResolvedShape:
    """The result of checking one combination of model, size, steps and guidance."""

    shape: Shape
    segment: int
    guidance: float
    digest_text: str


@dataclass(frozen=True, slots=True)
class ExistingJob:
    """A job that already exists: the number of its images, and the shapes of its segments in order of their numbers."""

    job_id: int
    images: int = 0
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True)
class _WithPicture:
    """A request that becomes the row `at` of those that are not spooled yet. `index` is that of its first image."""

    request: requests.ImageRequest
    resolved: ResolvedShape
    index: int
    seed: int
    at: int
    place: int
    prefix: str


@dataclass(frozen=True, slots=True)
class _Unscreened:
    """A request that the content policy has not seen. `index` is that of its first image."""

    prompt: str
    index: int
    n: int
    place: int
    prefix: str


class Submission:
    """Collects the requests of a new job or an existing one. A context manager; not safe between threads."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        policy: Policy,
        defaults: dict[str, Any] | None = None,
        existing: ExistingJob | None = None,
        max_images: int | None = None,
        max_here: int | None = None,
        pictures: inputs.Inputs | None = None,
    ) -> None:
        """A prompt that `policy` refuses is a problem of the submission, or its images are recorded as failed and the
        others are queued, as its door has it. `max_images` limits the images of the whole job, `max_here` those that
        this submission adds. Without `pictures`, requests with an input picture are refused."""
        self.existing = existing or ExistingJob(ids.new())
        self.job_id = self.existing.job_id
        self.problems: list[Problem] = []
        self.total = self.existing.images
        self.requests = 0
        self.drawn_seeds = 0
        self.models: set[str] = set()
        self._max_images = max_images or settings.max_images_per_job
        self._max_here = max_here or self._max_images
        self._digest = hashlib.sha256()
        self._settings = settings
        self._registry = registry
        self._long_prompts = {name: model for name, model in registry.items() if model.long_prompts}
        self._defaults = defaults or {}
        self._segments: dict[Shape, tuple[int, int]] = {  # number, first index
            shape: (number, self.total) for number, shape in enumerate(self.existing.shapes)
        }
        self._highest: list[int] = [-1] * len(self._segments)  # the last index of each segment; -1: nothing was added
        self._resolved: dict[tuple[object, ...], ResolvedShape] = {}  # by a request's fields that decide its shape
        self._custom_ids: dict[int, int] = {}
        self._pictures = pictures
        self._policy = policy
        self._unscreened: list[_Unscreened] = []
        self._refused: list[Refused] = []
        self._waiting: list[_WithPicture] = []  # for their pictures to be found, many at a time
        self._rows: list[str] = []
        self._digest_texts: list[str] = []  # what an Idempotency-Key covers: not white space, not the order of keys
        self._runs = Runs(self.total)
        self._ahead: Ahead | None = None
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_MEMORY)  # noqa: SIM115  closed by __exit__
        if defaults:
            self._check_defaults()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ahead is not None:
            self._ahead.abandon()
        self._spool.close()
        if self._pictures is not None:
            self._pictures.drop(undone=isinstance(error, NotAdmitted))

    @property
    def has_too_many_problems(self) -> bool:
        """Whether the caller may stop reading: no more problems would be reported."""
        return len(self.problems) >= MAX_PROBLEMS

    def refuse(self, problem: Problem) -> None:
        self.problems.append(problem)

    def copy_ahead(self, database: Database, tenant_id: int, *, idempotency_key: str | None = None) -> None:
        """From now on, copies what has been checked while the rest is read. Nothing slow happens in that transaction:
        what a content policy must see, and input pictures, are copied at the end."""
        if not self._policy.looks:
            self._ahead = Ahead(
                database, tenant_id, self.job_id, self._runs, first=self.total, idempotency_key=idempotency_key
            )

    def begin(self, database: Database, tenant_id: int) -> AbstractContextManager[Connection]:
        """The transaction that records it; committed at the end. The input must be closed."""
        return self._ahead.begin() if self._ahead is not None else database.begin(tenant_id)

    def add(self, place: int, value: object, prefix: str = "") -> None:
        """Checks one request and spools it. `place` is its line or index, `prefix` its path for error texts."""
        if self._defaults and isinstance(value, dict):
            value = with_defaults(self._defaults, value)
        try:
            request = requests.ImageRequest.model_validate(value)
        except ValidationError as error:
            self.problems.extend(requests.problems(error, value, place, prefix))
        else:
            self._take(request, place, prefix)

    def add_matrix(self, matrix: Matrix) -> None:
        """Adds every combination. If one is invalid, that is found before any is made, and a few of those are named."""
        if not matrix.pairwise:
            with Trial(self._settings, self._registry, policy=policies.NOTHING, defaults=self._defaults) as trial:
                trial.add_matrix(matrix)
                self.problems += trial.problems
            if self.problems:
                return
        for index, value in enumerate(matrix.requests()):
            if self.has_too_many_problems:
                return
            self.add(index, value)

    def add_line(self, number: int, line: bytes) -> None:
        """Checks one line of NDJSON and spools its request."""
        request = None if self._defaults else requests.read_plain(line)
        if request is not None:
            self._take(request, number, "")
            return
        try:
            value = strict_json.loads(line)
        except strict_json.BadJson as error:
            self.refuse(error.problem(number))
        else:
            self.add(number, value)

    def record(
        self,
        database: Database,
        tenant_id: int,
        *,
        label: requests.JobOptions,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Commits the job and all its images, or nothing.

        Raises:
            InvalidSubmission: something is wrong with it; lists up to 100 problems.
            IdempotencyConflict, IdempotencyGone, IdempotencyBusy: the key was used for another body or for what is
                deleted, or is in use right now.
            DatabaseUnavailable: nothing was recorded, or the outcome is unknown: submit again with the same key.
        """
        self.close()
        head = (label.priority, sorted(label.labels.items()), *(["dedupe"] if label.dedupe else []))
        more: list[object] = [] if label.retention is None else [sorted(label.retention.items())]
        more += [label.store] if label.in_shards else []
        self._digest.update(repr((*head, *(["embed_prompt"] if label.embed_prompt else []), *more)).encode())
        with traces.span("commit", images=self.total):
            try:
                with self.begin(database, tenant_id) as connection:
                    self._remember(connection, tenant_id, idempotency_key)
                    receipt = self.create(connection, tenant_id, label)
                    crash_point("submit.recorded")
                    return receipt
            except _Replayed as replayed:
                return Receipt(replayed.job_id, frozenset(self.models), replayed=True)

    def create(self, connection: Connection, tenant_id: int, label: requests.JobOptions) -> Receipt:
        """Records the job and all its images in an open transaction. The input must be closed."""
        job = NewJob(
            id=self.job_id,
            tenant_id=tenant_id,
            state=JobState.QUEUED,
            priority=requests.PRIORITIES[label.priority],
            labels=label.labels,
            total=self.total,
            requests=self.requests,
            dedupe=label.dedupe,
            embed_prompt=label.embed_prompt,
            retention=label.retention,
            in_shards=label.in_shards,
            drawn_seeds=self.drawn_seeds,
        )
        job_states.create(connection, job)
        segments.new(connection, self.job_id, tenant_id=tenant_id, priority=job.priority, segments=self.new_segments)
        self.copy(connection)
        return Receipt(self.job_id, frozenset(self.models))

    def close(self) -> bytes:
        """Ends the input. Returns the sha256 of all requests, which white space and the order of keys do not change.

        Raises:
            InvalidSubmission: something is wrong with it; lists up to 100 problems.
            PolicyUnavailable: a content policy cannot be asked.
        """
        if not self.problems and not self.requests:
            self.refuse(Problem("missing_field", "The submission holds no request.", "images"))
        self.check()
        self._flush()
        return self._digest.digest()

    def check(self) -> None:
        """Looks at what was not looked at yet. Raises as `close` does. What the content policy refused as a whole is
        recorded in a transaction of its own, so none may be open."""
        self.screen()
        self._find_pictures()
        if not self.problems:
            return
        if prompts := sum(problem.code == policies.CODE for problem in self.problems):
            refusals.whole(self._policy.door, prompts)
        raise InvalidSubmission(self.problems[:MAX_PROBLEMS], more=self.has_too_many_problems)

    @property
    def new_segments(self) -> list[tuple[Shape, int, int]]:
        """Shape, first and last index of the segments that the existing job lacks, in order of their numbers."""
        return [
            (shape, first, self._highest[number])
            for shape, (number, first) in self._segments.items()
            if number >= len(self.existing.shapes)
        ]

    @property
    def grown_segments(self) -> dict[int, int]:
        """The existing segments to which images were added: number -> last index."""
        return {number: high for number, high in enumerate(self._highest[: len(self.existing.shapes)]) if high >= 0}

    def _remember(self, connection: Connection, tenant_id: int, key: str | None) -> None:
        """Raises _Replayed, and as `idempotency.remember` does."""
        if key is None:
            return
        known = idempotency.remember(connection, tenant_id, key, sha256=self._digest.digest(), thing=self.job_id)
        if known is not None:
            raise _Replayed(known)

    def _take(self, request: requests.ImageRequest, place: int, prefix: str) -> None:
        """Spools a request with valid fields, if its model serves it and the job's limits allow it."""
        fields: tuple[object, ...] = (
            request.model, request.size, request.num_inference_steps, request.guidance_scale
        )  # fmt: skip
        if request.image is not None or request.strength is not None:
            fields += (request.image is None, request.strength)
        if request.reproducibility_class is not None:
            fields += ("class", request.reproducibility_class)
        chunks = self._chunks(request) if self._long_prompts else 1
        resolved = self._resolved.get((*fields, chunks)) or self._resolve(fields, chunks, request, place, prefix)
        if request.custom_id is not None:
            first = self._custom_ids.setdefault(hash(request.custom_id), place)
            if first != place:
                unit = "index" if prefix.startswith("images[") else "line"
                rule = f"was used at {unit} {first:,} already; each must be used once in a job"
                self._refuse("duplicate_custom_id", place, f"{prefix}custom_id", rule, request.custom_id)
        if request.output_compression == 100 and request.output_format == "png":
            request.output_compression = None  # type: ignore[assignment]  # OpenAI's default, and true of every PNG
        if request.output_compression is not None and request.output_format == "png":
            rule = f"must be {requests.ALLOWED['output_compression']}"
            self._refuse("invalid_value", place, f"{prefix}output_compression", rule, request.output_compression)
        if self.total + request.n > self._max_images:
            message = f"The job has more than {self._max_images:,} images; submit it in parts."
            self.refuse(Problem("too_many_images", message, f"{prefix}n", place))
        elif self.total - self.existing.images + request.n > self._max_here:
            message = f"The body has more than {self._max_here:,} images; append it in parts."
            self.refuse(Problem("too_many_images", message, f"{prefix}n", place))
        elif resolved is not None and not self.problems:
            if self._policy.looks:
                self._unscreened.append(_Unscreened(request.prompt, self.total, request.n, place, prefix))
            self._write(request, resolved, place, prefix)
            if len(self._unscreened) >= _SCREENED_AT_ONCE:
                self.screen()

    def screen(self) -> None:
        """Asks the content policy about the prompts that it has not seen. Raises PolicyUnavailable."""
        unscreened, self._unscreened = self._unscreened, []
        verdicts = self._policy.refusals([one.prompt for one in unscreened]) if unscreened else []
        for one, refusal in zip(unscreened, verdicts, strict=True):
            if refusal is not None and self._policy.door.begin is None:
                self._refused.append(Refused(one.index, one.n, f"The prompt {refusal}."))
            elif refusal is not None and not self.has_too_many_problems:
                param = f"{one.prefix}prompt"
                self.refuse(Problem(policies.CODE, f"{param} {refusal}.", param, one.place))

    def _check_defaults(self) -> None:
        try:
            requests.Defaults.model_validate(self._defaults)
        except ValidationError as error:
            self.problems.extend(requests.problems(error, self._defaults, prefix="defaults."))
            self._defaults = {}

    def _refuse(self, code: str, place: int, param: str, rule: str, found: object) -> None:
        self.refuse(Problem(code, f"{param} is {strict_json.describe(found)}; it {rule}.", param, place))

    def _resolve(
        self, fields: tuple[object, ...], chunks: int, request: requests.ImageRequest, place: int, prefix: str
    ) -> ResolvedShape | None:
        """Looks up the request's model and completes its shape; None, with a problem, if no model serves it."""
        found = served.resolve(self._registry, request, self._settings.model, prefix=prefix, place=place)
        if isinstance(found, Problem):
            self.refuse(found)
            return None
        if (why := self._policy.license_refusal(found.model, self._registry[found.model].license)) is not None:
            self.refuse(Problem(policies.NOT_ACCEPTED, why, f"{prefix}model", place))
            return None
        self.models.add(found.model)
        shape = replace(found.shape, prompt_chunks=chunks)
        if shape not in self._segments and len(self._segments) == MAX_SHAPES:
            message = f"The job mixes more than {MAX_SHAPES} shapes (size, steps, guided or not); submit it in parts."
            self.refuse(Problem("too_many_shapes", message, f"{prefix}size", place))
            return None
        if shape not in self._segments:
            self._segments[shape] = len(self._segments), self.total
            self._highest.append(self.total)
        resolved = ResolvedShape(shape, self._segments[shape][0], found.guidance_scale, repr(fields))
        if len(self._resolved) < _MAX_CACHED:
            self._resolved[*fields, chunks] = resolved
        return resolved

    def _chunks(self, request: requests.ImageRequest) -> int:
        """In how many chunks its model reads the prompt, and the negative prompt if the image is guided."""
        model = self._long_prompts.get(request.model or self._settings.model)
        if model is None or model.long_prompts is None:
            return 1
        scale = model.default_guidance_scale if request.guidance_scale is None else request.guidance_scale
        return model.long_prompts.chunks(request.prompt, request.negative_prompt if scale > 1 else "")

    def _write(self, request: requests.ImageRequest, resolved: ResolvedShape, place: int, prefix: str) -> None:
        """Writes a row for COPY and the text for the digest, which leaves out what was drawn or looked up here."""
        self._highest[resolved.segment] = self.total + request.n - 1
        seed = secrets.randbelow(DRAWN_SEEDS - request.n + 1) if request.seed is None else request.seed
        row = text = ""
        if request.image is None:
            row, text = self._row(request, resolved, self.total, seed)
        elif self._keep_picture(request, place, prefix):
            if self._ahead is not None:
                self._ahead.abandon()
            self._waiting.append(_WithPicture(request, resolved, self.total, seed, len(self._rows), place, prefix))
        self._rows.append(row)
        self._digest_texts.append(text)
        self.total += request.n
        self._runs.extend(self.total, resolved.segment)
        self.requests += 1
        self.drawn_seeds += request.seed is None
        if len(self._rows) == _SPOOL_ROWS:
            self._flush()

    def _row(
        self, request: requests.ImageRequest, resolved: ResolvedShape, index: int, seed: int,
        picture: columns.Input | None = None,
    ) -> tuple[str, str]:  # fmt: skip
        row, digest_text = columns.payload_row(
            request, job_id=self.job_id, index=index, segment_id=resolved.segment, seed=seed,
            guidance_scale=resolved.guidance, picture=picture,
        )  # fmt: skip
        return row, f"{request.n}\t{request.seed}\t{resolved.digest_text}\t{digest_text}\n"

    def _keep_picture(self, request: requests.ImageRequest, place: int, prefix: str) -> bool:
        """Puts a file's id in the place of a picture that came with the request. False: there is a problem."""
        param, problem = f"{prefix}image", None
        if self._pictures is None:
            problem = Problem("unsupported_image", "Input pictures cannot be used here.", param, place)
        elif requests.is_data_url(request.image):
            try:
                request.image = self._pictures.keep(request.image)
            except InvalidPicture as error:
                problem = Problem("invalid_image", f"{param}: {error}", param, place)
        if problem is not None:
            self.refuse(problem)
        return problem is None

    def _find_pictures(self) -> None:
        """Completes the rows that wait for their pictures."""
        waiting, self._waiting = self._waiting, []
        if not waiting or self._pictures is None:
            return
        found = self._pictures.find([entry.request.image for entry in waiting])
        if self._pictures.too_many:
            message = f"The submission names more than {inputs.MOST:,} input pictures; submit it in parts."
            self.refuse(Problem("too_many_inputs", message, f"{waiting[-1].prefix}image", waiting[-1].place))
        for entry in waiting:
            picture = found.get(entry.request.image)
            if picture is not None:
                self._rows[entry.at], self._digest_texts[entry.at] = self._row(
                    entry.request, entry.resolved, entry.index, entry.seed, picture
                )
            elif not self.has_too_many_problems:
                param = f"{entry.prefix}image"
                self._refuse("image_not_found", entry.place, param, inputs.MISSING, entry.request.image)

    def _flush(self) -> None:
        self._find_pictures()
        rows = "".join(self._rows).encode()
        self._spool.write(rows)
        self._digest.update("".join(self._digest_texts).encode())
        self._rows.clear()
        self._digest_texts.clear()
        if self._ahead is not None:
            self._ahead.add(rows, self.total)

    def copy(self, connection: Connection) -> None:
        """Copies what is not copied yet of the payloads and the images, directly into the job's partitions."""
        deadlines.lift(connection)
        done, first = (0, self.existing.images) if self._ahead is None else (self._ahead.bytes, self._ahead.end)
        self._spool.seek(done)
        payloads.copy(connection, self.job_id, self._spooled())
        if self._refused:
            images.spread(connection, self.job_id, first=first, refused=self._refused, door=self._policy.door)
        else:
            images.copy(connection, self.job_id, self._runs, first=first, end=self.total)
        if self._pictures is not None:
            self._pictures.record(connection, self.job_id)

    def _spooled(self) -> Iterator[bytes]:
        while chunk := self._spool.read(_COPY_CHUNK):
            yield chunk
            crash_point("submit.copying")


class _Replayed(Exception):
    """The Idempotency-Key had already recorded that job: nothing of this submission is kept."""

    def __init__(self, job_id: int) -> None:
        self.job_id = job_id


class Trial(Submission):
    """Checks requests as a submission does, and keeps none of them."""

    _alike = 1  # how many requests the one at hand stands for

    def add_matrix(self, matrix: Matrix) -> None:
        """Checks every combination, and makes only those that stand for others."""
        self._alike = 0
        for index, value in matrix.suspects():
            self.add(index, value)
        if not self.problems:
            for index, value, count in matrix.representatives():
                if self.has_too_many_problems:
                    break
                self._alike = count
                self.add(index, value)
        self._alike = 1

    def _write(self, request: requests.ImageRequest, resolved: ResolvedShape, place: int, prefix: str) -> None:
        pass


def read_lines(submission: Submission, lines: Iterable[bytes]) -> None:
    """Adds requests from NDJSON lines, each without its line end."""
    blank = 0
    for number, given in enumerate(lines, 1):
        if submission.has_too_many_problems:
            return
        line = given.removeprefix(strict_json.BYTE_ORDER_MARK) if number == 1 else given
        if not line or line.isspace():
            blank = blank or number
            continue
        if blank:
            submission.refuse(Problem("blank_line", "There is a blank line between requests.", None, blank))
            blank = 0
        submission.add_line(number, line)
