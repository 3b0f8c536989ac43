"""The answers of the native API. Output models list every field."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, PlainSerializer

from services.core.db import actors
from services.core.db.columns import Payload
from services.core.events import queries as events
from services.core.fleet import workers
from services.core.jobs.queries import ImageView, JobView
from services.core.marks.asked import Mark
from services.core.model import ids, requests, scores
from services.core.model.scopes import Principal
from services.core.model.states import ImageState

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
    """`retry_of` is the job whose failed images this one renders again. `reused` counts the done images that were
    copied from earlier jobs; with `store` "shards" many images lie in one object. `device_seconds` is how long
    accelerators were at its images. `warnings` say what is allowed and hardly meant and, of a job that is asked for
    alone, what of it nobody can render. `eta_seconds` is how long the rest takes, `eta_low_seconds` and
    `eta_high_seconds` its bounds; null: not known. A job that has not finished at `expires_at` is stopped, and
    `stop_reason` says so. `retention` are the days by kind that its submission gave, null: for ever; a kind that it
    does not name follows the tenant's rule. `payloads_erased_at` and `objects_deleted_at`: since when its prompts, or
    its images, are gone."""

    id: str
    object: Literal["job"] = "job"
    status: str
    paused: bool
    priority: str
    counts: Counts
    labels: dict[str, str]
    requests: int
    retry_of: str | None
    reused: int
    device_seconds: float
    dedupe: bool
    embed_prompt: bool
    store: Literal["objects", "shards"]
    trace_id: str | None
    warnings: list[str]
    created_at: Moment
    started_at: Moment | None
    cancel_requested_at: Moment | None
    finished_at: Moment | None
    expires_at: Moment | None
    stop_reason: str | None
    retention: dict[str, int | None] | None
    payloads_erased_at: Moment | None
    objects_deleted_at: Moment | None
    rate: float
    eta_seconds: float | None
    eta_low_seconds: float | None
    eta_high_seconds: float | None
    as_of: Moment


class Event(BaseModel):
    """Something that happened at `at`, to a job if `job_id` names one. `seq` grows; `actor` is the process that did
    it."""

    seq: int
    at: Moment
    kind: str
    actor: str
    job_id: str | None
    data: dict[str, int | str]


class EventPage(BaseModel):
    """In order of `seq`. For the next page, now or later, ask with `after` as the last `seq`. An event that is
    committed late gets a higher number, so none is missed."""

    data: list[Event]
    has_more: bool


class JobPage(BaseModel):
    data: list[Job]
    next_cursor: str | None


class ImageError(BaseModel):
    code: str
    message: str


class OfRequest(BaseModel):
    """The fields that an image and its request share. `metadata` is the client's own. `image` is the input picture: a
    file's id, or job and index of an earlier image."""

    index: int
    custom_id: str | None
    image: str | None
    strength: float | None
    metadata: dict[str, requests.MetadataValue]


class Image(OfRequest):
    """`seed_string` is for clients whose numbers end at 2^53. `flagged` is the verdict of the model's safety checker,
    null if it has none. `unknown_words` of the prompt are not in the model's vocabulary. `versions` names the software
    that drew it. `mark` is what someone said of it. `scores` are those that the worker's scorers gave it, each null if
    its scorer failed; `phash` is a perceptual hash, of which near-duplicates share most bits; null: it was not
    scored."""

    status: str
    seed: int
    seed_string: str
    output_format: str
    output_compression: int | None
    sha256: str | None
    bytes: int | None
    url: str | None
    truncated: bool | None
    flagged: bool | None
    unknown_words: list[str] | None
    reproducibility_class: str | None
    reused: bool | None
    versions: str | None
    device: str | None
    mark: Mark | None
    scores: dict[str, float | None] | None
    phash: str | None
    error: ImageError | None


class ImagePage(BaseModel):
    data: list[Image]
    next_cursor: str | None


class Problem(BaseModel):
    line: int | None = None
    index: int | None = None
    chunk: int | None = None
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
    """`age_seconds`: how long ago the oldest of these looks ended."""

    status: Literal["ok", "degraded", "failing"]
    age_seconds: float
    checks: dict[str, Check]


def job(view: JobView) -> Job:
    return Job(
        id=ids.public_job(view.id),
        status=view.state,
        paused=view.paused,
        priority=PRIORITY_WORDS[view.priority],
        counts=Counts(total=view.total, **view.counts),
        labels=view.labels,
        requests=view.requests,
        retry_of=None if view.retry_of is None else ids.public_job(view.retry_of),
        reused=view.reused,
        device_seconds=round(view.device_seconds, 3),
        dedupe=view.dedupe,
        embed_prompt=view.embed_prompt,
        store="shards" if view.in_shards else "objects",
        trace_id=view.trace_id,
        warnings=requests.warnings(view.requests, dedupe=view.dedupe, drawn_seeds=view.drawn_seeds),
        created_at=view.created_at,
        started_at=view.started_at,
        cancel_requested_at=view.cancel_requested_at,
        finished_at=view.finished_at,
        expires_at=view.expires_at,
        stop_reason=view.stop_reason,
        retention=view.retention,
        payloads_erased_at=view.payloads_erased_at,
        objects_deleted_at=view.objects_deleted_at,
        rate=round(view.rate, 3),
        eta_seconds=_rounded(view.eta_seconds),
        eta_low_seconds=_rounded(view.eta_low),
        eta_high_seconds=_rounded(view.eta_high),
        as_of=view.as_of,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def of_request(index: int, payload: Payload) -> dict[str, Any]:
    """The fields of OfRequest."""
    return {
        "index": index,
        "custom_id": payload.custom_id,
        "image": payload.image,
        "strength": payload.strength,
        "metadata": payload.metadata or {},
    }


def image(view: ImageView, link: Callable[[int], str], caller: Principal) -> Image:
    """The image as that caller may see it: hosts are for those who may operate."""
    names_host = caller.sees_hosts
    done = view.state is ImageState.DONE
    failed = view.state is ImageState.FAILED
    return Image(
        **of_request(view.index, view.payload),
        status=view.state.word,
        seed=view.seed,
        seed_string=str(view.seed),
        output_format=view.payload.output_format,
        output_compression=view.payload.output_compression,
        sha256=view.sha256,
        bytes=view.bytes,
        url=link(view.index) if done else None,
        truncated=view.truncated,
        flagged=view.flagged,
        unknown_words=None if view.unknown_words is None else list(view.unknown_words),
        reproducibility_class=view.reproducibility_class,
        reused=view.reused,
        versions=view.versions,
        device=view.device if names_host or view.device is None else workers.without_host(view.device),
        mark=view.mark,
        scores=view.scores,
        phash=scores.hex_of(view.phash),
        error=ImageError(code=view.error_code or "unknown", message=view.error_message or "") if failed else None,
    )


def event(found: events.Event, *, names_hosts: bool) -> Event:
    """The event; with `names_hosts` as those see it who may operate: the name of a worker has its host's."""
    job_id = events.job_of(found)
    return Event(
        seq=found.seq,
        at=found.at,
        kind=found.kind,
        actor=found.actor if names_hosts else actors.without_host(found.actor),
        job_id=None if job_id is None else ids.public_job(job_id),
        data=found.data,
    )
