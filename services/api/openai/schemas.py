"""Objects of the OpenAI-shaped API, and one table from Presswork's states to its words.

Only this API calls a job that was made from a file a batch.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from services.core.batches import line_format
from services.core.batches.batch_jobs import BatchJob
from services.core.files import files, uploads
from services.core.model import ids
from services.core.model.states import JobState

STATUS: dict[JobState, str] = {
    JobState.DRAFT: "validating",
    JobState.VALIDATING: "validating",
    JobState.QUEUED: "in_progress",
    JobState.IN_PROGRESS: "in_progress",
    JobState.FINALIZING: "finalizing",
    JobState.CANCELLING: "cancelling",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "expired",
}


class File(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: str | None = None
    sha256: str


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Upload(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: File | None


class UploadPart(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class RequestCounts(BaseModel):
    """`failed` counts the lines of the error file: requests that failed and requests that were never rendered."""

    total: int
    completed: int
    failed: int


class BatchError(BaseModel):
    code: str | None
    line: int | None
    message: str | None
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class Batch(BaseModel):
    """`job_id` is the same job in the native API."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    job_id: str


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Picture(BaseModel):
    """One image of a response. `url` lives as long as the image and needs no key. `seed_string` is for clients whose
    numbers end at 2^53."""

    url: str | None
    b64_json: str | None
    revised_prompt: str | None
    seed: int
    seed_string: str
    sha256: str
    bytes: int
    output_format: str
    model_revision: str
    truncated: bool
    flagged: bool | None
    unknown_words: list[str]
    reproducibility_class: str
    reused: bool
    job_id: str
    index: int


class Pictures(BaseModel):
    created: int
    data: list[Picture]
    output_format: str
    size: str


class LicenseAcceptance(BaseModel):
    """Who accepted it for the tenant, as an actor and by name if it is a key, and when."""

    by: str
    by_name: str | None
    at: str


class License(BaseModel):
    """As the model's card names it. `restrictions`: what it forbids, in short; its text, at `link`, is what holds.
    `sha256` is of all four, and what is accepted; with `acceptance_required`, nothing is drawn before."""

    id: str
    name: str
    link: str
    restrictions: list[str]
    sha256: str
    accepted: LicenseAcceptance | None
    acceptance_required: bool


class Model(BaseModel):
    """`reproducibility_classes` are those in which workers have rendered with this revision, also workers that are
    gone; a job may ask for one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "presswork"
    revision: str
    sizes: list[str]
    default_size: str
    default_num_inference_steps: int
    default_guidance_scale: float
    max_num_inference_steps: int
    workers: int
    reproducibility_classes: list[str]
    license: License | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def batch_id(job_id: int) -> str:
    return ids.public("batch_", job_id)


def parse_batch_id(public: str) -> int:
    return ids.parse("batch_", public, "batch")


def epoch(moment: datetime) -> int:
    return int(moment.timestamp())


def status(job: BatchJob) -> str:
    """A job whose file was accepted is `completed`, even if all of its requests failed. A job that ran out of time is
    `finalizing` and not `cancelling`, since no client cancelled it."""
    if job.state == JobState.FAILED and job.problems is None:
        return "completed"
    if job.state == JobState.CANCELLING and job.stop_reason == "expired":
        return "finalizing"
    return STATUS[JobState(job.state)]


def file(found: files.File) -> File:
    return File(
        id=files.public_id(found.id),
        bytes=found.bytes,
        created_at=epoch(found.created_at),
        expires_at=_maybe(found.expires_at),
        filename=found.filename,
        purpose=found.purpose,
        sha256=found.sha256.hex(),
    )


def upload(found: uploads.Upload, made: files.File | None) -> Upload:
    return Upload(
        id=uploads.public_id(found.id),
        bytes=found.bytes,
        created_at=epoch(found.created_at),
        expires_at=epoch(found.expires_at),
        filename=found.filename,
        purpose=found.purpose,
        status=found.state,
        file=None if made is None else file(made),
    )


def batch(job: BatchJob) -> Batch:
    word = status(job)
    ended = _maybe(job.finished_at)
    expired = job.stop_reason == "expired"
    asked = _maybe(job.cancel_requested_at)
    return Batch(
        id=batch_id(job.id),
        endpoint=line_format.ENDPOINT,
        errors=None if job.problems is None else BatchErrors(data=[_error(problem) for problem in job.problems]),
        input_file_id=files.public_id(job.input_file_id),
        completion_window=job.completion_window,
        status=word,
        output_file_id=_file_id(job.output_file_id),
        error_file_id=_file_id(job.error_file_id),
        created_at=epoch(job.created_at),
        in_progress_at=_maybe(job.opened_at),
        expires_at=epoch(job.expires_at),
        finalizing_at=asked if expired else _maybe(job.finalizing_at),
        completed_at=ended if word == "completed" else None,
        failed_at=ended if word == "failed" else None,
        expired_at=ended if word == "expired" else None,
        cancelling_at=None if expired else asked,
        cancelled_at=ended if word == "cancelled" else None,
        request_counts=RequestCounts(total=job.requests, completed=job.done, failed=job.failed),
        metadata=job.labels or None,
        job_id=ids.public_job(job.id),
    )


def _error(problem: dict[str, Any]) -> BatchError:
    return BatchError(**{name: problem.get(name) for name in ("code", "line", "message", "param")})


def _file_id(number: int | None) -> str | None:
    return None if number is None else files.public_id(number)


def _maybe(moment: datetime | None) -> int | None:
    return None if moment is None else epoch(moment)
