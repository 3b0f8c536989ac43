"""What the API answers with, and how OpenAPI describes what it takes. Output models name every field they show."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, PlainSerializer

from services.core import jobs, requests
from services.core.states import ImageState
from services.core.views import ImageView, JobView

PRIORITY_WORDS = {number: word for word, number in requests.PRIORITIES.items()}


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[datetime, PlainSerializer(_utc, return_type=str)]


class Counts(BaseModel):
    """queued + rendering + done + failed + cancelled = total, in every answer."""

    total: int
    queued: int
    rendering: int
    done: int
    failed: int
    cancelled: int


class Job(BaseModel):
    id: str
    object: Literal["job"] = "job"
    status: str
    paused: bool
    priority: str
    counts: Counts
    labels: dict[str, str]
    created_at: Moment
    started_at: Moment | None
    cancel_requested_at: Moment | None
    finished_at: Moment | None
    rate: float
    eta_seconds: float | None
    as_of: Moment


class JobPage(BaseModel):
    data: list[Job]
    next_cursor: str | None


class ImageError(BaseModel):
    code: str
    message: str


class Image(BaseModel):
    """`seed_string` is for readers whose numbers end at 2^53. `flagged` is the model's own safety checker's verdict,
    null where none ran; `unknown_words` are the prompt's that its vocabulary does not know; `versions` drew it."""

    index: int
    custom_id: str | None
    status: str
    seed: int
    seed_string: str
    output_format: str
    sha256: str | None
    bytes: int | None
    url: str | None
    truncated: bool | None
    flagged: bool | None
    unknown_words: list[str] | None
    reproducibility_class: str | None
    versions: str | None
    device: str | None
    error: ImageError | None


class ImagePage(BaseModel):
    data: list[Image]
    next_cursor: str | None


class Problem(BaseModel):
    line: int | None = None
    index: int | None = None
    param: str | None
    code: str
    message: str


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str
    errors: list[Problem] | None = None
    more: bool | None = None


class ErrorBody(BaseModel):
    error: Error


class Alive(BaseModel):
    status: Literal["ok"] = "ok"


class Check(BaseModel):
    status: Literal["ok", "degraded", "failing"]
    message: str


class Ready(BaseModel):
    status: Literal["ok", "degraded", "failing"]
    checks: dict[str, Check]


def job(view: JobView) -> Job:
    return Job(
        id=jobs.public_id(view.id),
        status=view.state,
        paused=view.paused,
        priority=PRIORITY_WORDS[view.priority],
        counts=Counts(total=view.total, **view.counts),
        labels=view.labels,
        created_at=view.created_at,
        started_at=view.started_at,
        cancel_requested_at=view.cancel_requested_at,
        finished_at=view.finished_at,
        rate=round(view.rate, 3),
        eta_seconds=None if view.eta_seconds is None else round(view.eta_seconds, 1),
        as_of=view.as_of,
    )


def image(view: ImageView, url: str) -> Image:
    done = view.state is ImageState.DONE
    failed = view.state is ImageState.FAILED
    return Image(
        index=view.index,
        custom_id=view.custom_id,
        status=view.state.word,
        seed=view.seed,
        seed_string=str(view.seed),
        output_format=view.output_format,
        sha256=view.sha256,
        bytes=view.bytes,
        url=url if done else None,
        truncated=view.truncated,
        flagged=view.flagged,
        unknown_words=None if view.unknown_words is None else list(view.unknown_words),
        reproducibility_class=view.reproducibility_class,
        versions=view.versions,
        device=view.device,
        error=ImageError(code=view.error_code or "unknown", message=view.error_message or "") if failed else None,
    )


def submission_body() -> dict[str, Any]:
    """The `requestBody` of a submission: we read it ourselves, so FastAPI cannot know."""
    one, defaults, head = (
        model.model_json_schema() for model in (requests.ImageRequest, requests.Defaults, requests.Label)
    )
    images = {"type": "array", "minItems": 1, "items": one, "description": requests.ALLOWED["images"]}
    whole = {
        "type": "object",
        "additionalProperties": False,
        "required": ["images"],
        "properties": {"images": images, "defaults": defaults, **head["properties"]},
    }
    lines = {"type": "string", "description": "One request object a line.", "contentSchema": one}
    return {
        "required": True,
        "content": {"application/json": {"schema": whole}, "application/x-ndjson": {"schema": lines}},
    }
