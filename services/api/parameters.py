"""Query parameters, checked strictly: known, given once, and well formed."""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from services.api.errors import ApiError, parameter_status
from services.core.model import ids, job_words, metadata_filters
from services.core.model.errors import NotFound
from services.core.model.metadata_filters import Condition
from services.core.model.scores import NotUnderstood, Wanted, wanted
from services.core.model.states import ImageState, JobState

LAST_VERSION = 999_999_999  # of a catalogue


async def reject_unknown(request: Request) -> None:
    """Refuses parameters that the route does not know, and any that is given twice. It takes no thread, so /livez
    answers also when all are taken."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            takes = ", ".join(sorted(known)) or "none"
            message = f"There is no such query parameter; known here: {takes}."
            raise ApiError(parameter_status(request), "unknown_parameter", message)
        if name in seen:
            raise ApiError(parameter_status(request), "repeated_parameter", f"{name} is given twice.", param=name)
        seen.add(name)


def is_whole(text: str, digits: int = 9) -> bool:
    """Whether the text is the one way to write a number that is not negative: no sign, no space, no leading zero."""
    return text.isascii() and text.isdigit() and len(text) <= digits and (text == "0" or text[0] != "0")


def is_index(text: str) -> bool:
    """Whether the text is the one way to write the place of an image or a change, as far as there can be any."""
    return is_whole(text, digits=10) and int(text) < 1 << 31


def whole(value: object) -> object:
    """Digits only: pydantic alone would read "+1", "1.0", "01" and " 1" as 1."""
    if isinstance(value, str) and not is_whole(value):
        raise ValueError("not a whole number")
    return value


def _position(value: object) -> object:
    if isinstance(value, str) and not is_whole(value, digits=18):
        raise ValueError("not a whole number")
    return value


def _label(given: str | None) -> str | None:
    name, colon, _ = (given or "").partition(":")
    if given is not None and not (0 < len(name) <= 64 and colon and "\0" not in given):
        raise ValueError("no label")
    return given


def _dated(given: object) -> object:
    """Seconds since 1970, as a number, are no moment here."""
    if isinstance(given, str) and not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]", given):
        raise ValueError
    return given


def _when(given: str | None) -> str | None:
    if given is not None:
        job_words.moment(given, is_end=True)
    return given


def _storable(given: str) -> str:
    if "\0" in given:
        raise ValueError("no text of the database")
    return given


def _job(given: str | None) -> str | None:
    if given is not None:
        try:
            ids.parse_job(given)
        except NotFound:
            raise ValueError("no job's id") from None
    return given


def _up_to(maximum: int) -> Any:
    return Query(
        ge=1,
        le=maximum,
        description=f"a whole number from 1 to {maximum}",
        json_schema_extra={"minimum": 1, "maximum": maximum},  # pydantic cannot see them behind the validator
    )


def version(description: str, **more: Any) -> Any:
    """The query parameter that is the number of a catalogue's version; WHOLE goes with it."""
    return Query(
        ge=1,
        le=LAST_VERSION,
        description=f"the number of a kept version{description}",
        json_schema_extra={"minimum": 1, "maximum": LAST_VERSION},
        **more,
    )


Points = Annotated[int, BeforeValidator(whole), _up_to(1000)]
Grain = Annotated[Literal["minute", "hour"], Query(description="minute or hour: what a point stands for")]
Limit = Annotated[int, BeforeValidator(whole), _up_to(1000)]
Seq = Annotated[
    int | None,
    BeforeValidator(lambda given: None if given is None else _position(given)),
    Query(ge=0, description="the seq of the last event that the client has; none: begin now"),
]
After = Annotated[
    int,
    BeforeValidator(_position),
    Query(ge=0, description="the seq of the last event that the client has", json_schema_extra={"minimum": 0}),
]
AfterId = Annotated[str | None, Query(max_length=40, description="the id of the last one seen")]
Actor = Annotated[
    str | None, Query(max_length=200, description="an actor, such as key/Xk29dQ7a, cli/alice or scheduler")
]
Verb = Annotated[str | None, Query(max_length=64, description="a kind of act, such as job.cancel_requested")]
Whose = Annotated[
    str | None,
    AfterValidator(lambda given: None if given is None else _storable(given)),
    Query(alias="tenant", max_length=200, description="a tenant's name or id, or * for all; without, that of the key"),
]
JobFilter = Annotated[
    str | None,
    AfterValidator(_job),
    Query(description="a job's id", json_schema_extra={"pattern": "^job_[0-9a-z]{13}$"}),
]
Moment = Annotated[
    AwareDatetime | None,
    BeforeValidator(_dated),
    Query(description="a moment with its offset from UTC, such as 2026-11-26T09:00:00Z"),
]
FileLimit = Annotated[int, BeforeValidator(whole), _up_to(10_000)]
BatchLimit = Annotated[int, BeforeValidator(whole), _up_to(100)]
WHOLE = BeforeValidator(lambda given: None if given is None else whole(given))
PlaceCursor = Annotated[str | None, Query(max_length=20_000, description="the next_cursor of the page before")]
Cursor = Annotated[str | None, Query(max_length=200, description="the next_cursor of the page before")]
Status = Annotated[
    Literal["queued", "rendering", "done", "failed", "cancelled"] | None,
    Query(description="one of queued, rendering, done, failed, cancelled"),
]
Cause = Annotated[
    str | None,
    AfterValidator(lambda given: None if given is None else _storable(given)),
    Query(min_length=1, max_length=64, description="the code of a cause, as `/failures` lists them"),
]
Mark = Annotated[
    Literal["accepted", "rejected", "starred"] | None, Query(description="one of accepted, rejected, starred")
]
Priority = Annotated[
    Literal["high", "normal", "low"] | None,
    Query(description="one of high, normal, low; with JSON it is a field of the body instead"),
]


_YES_OR_NO = Literal["true", "false"] | None
Dedupe = Annotated[_YES_OR_NO, Query(description="true or false; with JSON it is a field of the body instead")]
EmbedPrompt = Annotated[_YES_OR_NO, Query(description="true or false; with JSON it is a field of the body instead")]
Store = Annotated[
    Literal["objects", "shards"] | None,
    Query(description="where images are stored; with JSON it is a field of the body instead"),
]
_JOB_STATUSES = [status for status in job_words.STATES if status]
JobStatus = Annotated[
    Literal["unfinished"] | JobState | None,
    Query(description=f"one of {', '.join(_JOB_STATUSES)}"),
]
_JobWord = Annotated[str | None, AfterValidator(lambda given: None if given is None else _storable(given))]
JobText = Annotated[
    _JobWord, Query(max_length=job_words.MOST_TEXT, description="text that stands in one of the job's labels")
]
JobModel = Annotated[
    _JobWord, Query(max_length=job_words.MOST_TEXT, description="the name of a model that renders the job")
]
JobWho = Annotated[
    _JobWord, Query(max_length=job_words.MOST_TEXT, description="the name or the id of the key that submitted the job")
]
JobPriority = Annotated[Literal["high", "normal", "low"] | None, Query(description="one of high, normal, low")]
JobSort = Annotated[
    Literal["newest", "oldest", "failed_first"], Query(description="one of newest, oldest, failed_first")
]
JobSince = Annotated[
    str | None,
    AfterValidator(_when),
    Query(
        max_length=40, description=f"since when the job was submitted: {job_words.WHEN}",
        json_schema_extra={"pattern": job_words.WHEN_PATTERN},
    ),
]  # fmt: skip
JobUntil = Annotated[
    str | None,
    AfterValidator(_when),
    Query(
        max_length=40, description="until when, the same; a day is included",
        json_schema_extra={"pattern": job_words.WHEN_PATTERN},
    ),
]  # fmt: skip
JobOptions = Annotated[
    str | None,
    AfterValidator(_label),
    Query(
        max_length=600,
        description="a label's name, a colon and its value, such as run:nightly",
        json_schema_extra={"pattern": "^[^:]{1,64}:"},
    ),
]
NeededLabel = Annotated[
    str,
    AfterValidator(_label),
    Query(
        max_length=600,
        description="a label's name, a colon and its value, such as run:nightly",
        json_schema_extra={"pattern": "^[^:]{1,64}:"},
    ),
]
Distance = Annotated[
    int,
    BeforeValidator(whole),
    Query(
        ge=0, le=6, description="in how many of 64 bits two perceptual hashes may differ: a whole number from 0 to 6"
    ),
]
SearchText = Annotated[
    str,
    AfterValidator(_storable),
    Query(min_length=1, max_length=200, description="1 to 200 characters, none of them U+0000"),
]
CustomId = Annotated[
    str, AfterValidator(_storable), Query(min_length=1, max_length=128, description="the custom_id of a request")
]
Score = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=400,
        description="NAME>=NUMBER or NAME<=NUMBER of a score; several with commas, such as sharpness>=0.1,uniform<=0.9",
    ),
]
Metadata = Annotated[
    str | None,
    AfterValidator(lambda given: None if given is None else _storable(given)),
    Query(
        min_length=1,
        max_length=2_000,
        description="NAME=VALUE or NAME!=VALUE of metadata; several with commas, such as split=val,lang!=de "
        "(a comma of a value as \\,)",
    ),
]
Sort = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=33,
        description="the name of a score: the lowest first, or with - before it the highest",
    ),
]
Order = Annotated[Literal["index", "failed_first"], Query(description="index or failed_first")]


def number(text: str) -> int:
    """The number of a version in a path. Raises NotFound."""
    if not is_whole(text):
        raise NotFound("There is no such version.")
    return int(text)


def after_id(given: str | None, parse: Callable[[str], int]) -> int | None:
    """The id behind which a list of the OpenAI-shaped API goes on. Raises ApiError if it is none."""
    try:
        return None if given is None else parse(given)
    except NotFound:
        message = f"after is {json.dumps(given)}; it must be the id of the last one seen."
        raise ApiError(400, "invalid_parameter", message, param="after") from None


def label(given: str | None) -> tuple[str, str] | None:
    """(name, value), separated by the first colon."""
    return None if given is None else (given.partition(":")[0], given.partition(":")[2])


def scores(score: str | None, sort: str | None) -> Wanted | None:
    """What is asked of scores; None: nothing. Raises ApiError."""
    try:
        return wanted(score.split(",") if score else [], sort)
    except NotUnderstood as error:
        raise ApiError(422, "invalid_parameter", str(error), param="score" if error.is_filter else "sort") from None


def metadata(given: str | None) -> tuple[Condition, ...]:
    """What is asked of metadata. Raises ApiError."""
    try:
        return metadata_filters.conditions([] if given is None else metadata_filters.divided(given))
    except metadata_filters.NotUnderstood as error:
        raise ApiError(422, "invalid_parameter", str(error), param="metadata") from None


def flag(word: str | None) -> bool | None:
    return None if word is None else word == "true"


def image_state(status: str | None) -> ImageState | None:
    return None if status is None else ImageState[status.upper()]
