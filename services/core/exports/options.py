"""The request for an export: its format, its options and their limits, and the messages for invalid ones."""

import hashlib
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from services.core.exports.formats import FORMATS, FormatName
from services.core.marks.asked import MARKS, Mark
from services.core.model import metadata_filters, strict_json, suggestions
from services.core.model.body import Body
from services.core.model.errors import InvalidSubmission, Problem
from services.core.model.scores import MOST_RANGES, NotUnderstood, ranges

MAX_IMAGES_PER_SHARD = 100_000
MAX_SPLITS = 16
MAX_CONDITIONS = 16
DAY = 24 * 3600
_SPLIT = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_RESERVED = re.compile(r"all|con|prn|aux|nul|com[0-9]|lpt[0-9]")  # for all splits together, and for devices


def _any_of(names: Iterable[str]) -> str:
    *most, last = (f'"{name}"' for name in names)
    return f"{', '.join(most)} or {last}" if most else last


_WITH_REFERENCES = [name for name, entry in FORMATS.items() if entry.references]
ALLOWED = {
    "format": _any_of(FORMATS),
    "options": "an object with fields among images_per_shard, include_flagged, mark, scores, metadata, split, "
    "images, expires_in_seconds",
    "images_per_shard": f"a whole number from 1 to {MAX_IMAGES_PER_SHARD:,}",
    "include_flagged": "true or false",
    "mark": f"one of {', '.join(MARKS)}: only images with that mark when the export begins",
    "scores": f'a list of at most {MAX_CONDITIONS} texts such as "sharpness>=0.3" or "uniform<=0.9", of at most '
    f"{MOST_RANGES} scores: only such images",
    "metadata": f'a list of at most {metadata_filters.MOST} texts such as "split=val" or "lang!=de": only images with '
    "such metadata",
    "split": f"an object of 1 to {MAX_SPLITS} names (a-z 0-9 _, a letter first, at most 32) with shares that make 1",
    "images": f'"inline", or for {" or ".join(_WITH_REFERENCES)} "reference"',
    "expires_in_seconds": "a whole number from 60 to 31536000",
}


def _name(value: str) -> str:
    if not _SPLIT.fullmatch(value):
        raise PydanticCustomError("invalid_value", "")
    return value


def _whole(shares: dict[str, float]) -> dict[str, float]:
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise PydanticCustomError("invalid_value", "")
    return dict(sorted(shares.items()))


def _condition(value: str) -> str:
    try:
        ranges([value])
    except NotUnderstood:
        raise PydanticCustomError("invalid_value", "") from None
    return value


def _metadata(value: str) -> str:
    try:
        return str(metadata_filters.conditions([value])[0])
    except metadata_filters.NotUnderstood:
        raise PydanticCustomError("invalid_value", "") from None


ImagesPerShard = Annotated[int, Field(ge=1, le=MAX_IMAGES_PER_SHARD)]
Scores = Annotated[
    list[Annotated[str, Field(max_length=100), AfterValidator(_condition)]], Field(max_length=MAX_CONDITIONS)
]
Metadata = Annotated[
    list[Annotated[str, Field(max_length=600), AfterValidator(_metadata)]], Field(max_length=metadata_filters.MOST)
]
Split = Annotated[
    dict[Annotated[str, AfterValidator(_name)], Annotated[float, Field(gt=0, le=1)]],
    Field(min_length=1, max_length=MAX_SPLITS),
    AfterValidator(_whole),
]


class Options(Body):
    """The options of an export. All of them except expires_in_seconds decide its bytes."""

    images_per_shard: ImagesPerShard = 10_000
    include_flagged: bool = True
    mark: Mark | None = None
    scores: Scores = Field(default_factory=list)
    metadata: Metadata = Field(default_factory=list)
    split: Split = Field(default_factory=lambda: {"train": 1.0})
    images: Literal["inline", "reference"] = "inline"
    expires_in_seconds: Annotated[int, Field(ge=60, le=365 * DAY)] = 7 * DAY

    def split_of(self, name: str) -> str:
        """The split of a request's images, chosen by the hash of its name: the same in every export."""
        point = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
        upper, names = 0.0, list(self.split)
        for split in names[:-1]:
            upper += self.split[split]
            if point < upper:
                return split
        return names[-1]


class ExportRequest(Body):
    """The body that asks for an export."""

    format: FormatName
    options: Options = Field(default_factory=Options)

    def digest(self, job_id: int) -> bytes:
        """The digest that an Idempotency-Key covers."""
        later = {
            name for name in ("mark", "scores", "metadata") if not getattr(self.options, name)
        }  # keys of before hold
        asked = self.model_dump_json(exclude={"options": later})
        return hashlib.sha256(f"export\n{job_id}\n{asked}".encode()).digest()


def parse(value: object) -> ExportRequest:
    """Parses the body. Raises InvalidSubmission with the invalid fields, the values found and the values allowed."""
    if not isinstance(value, dict):
        shown = strict_json.describe(value)
        raise InvalidSubmission([Problem("wrong_type", f"The body is {shown}; it must be an object.")])
    try:
        asked = ExportRequest.model_validate(value)
    except ValidationError as error:
        raise InvalidSubmission([_problem(entry) for entry in error.errors(include_url=False)]) from None
    try:
        ranges(asked.options.scores)  # each alone says something, but not all go together
    except NotUnderstood as error:
        raise InvalidSubmission([Problem("invalid_value", f"options.scores: {error}", "options.scores")]) from None
    if problem := reserved(asked.options.split, "options.split"):
        raise InvalidSubmission([problem])
    if asked.options.images == "reference" and not FORMATS[asked.format].references:
        message = f'options.images is "reference"; with {asked.format} it must be "inline".'
        raise InvalidSubmission([Problem("invalid_value", message, "options.images")])
    return asked


def reserved(split: Iterable[str], param: str) -> Problem | None:
    """What is wrong with the splits' names, if it is anything."""
    for name in filter(_RESERVED.fullmatch, split):
        message = f'{param} names a split "{name}", which programs take for something else; choose another name.'
        return Problem("invalid_value", message, param)
    return None


def _problem(entry: Any) -> Problem:
    path = [str(part) for part in entry["loc"]]
    named = path[: 2 if path[0] == "options" else 1]
    param, field = ".".join(named), named[-1]
    if entry["type"] == "extra_forbidden":
        shown = strict_json.describe(field)
        name = param if field.isascii() and field.isidentifier() else shown
        known = Options.model_fields if len(named) > 1 else ExportRequest.model_fields
        return Problem("unknown_field", suggestions.unknown_field(field, known), name[:80])
    if entry["type"] == "missing":
        return Problem("missing_field", f"{param} is missing; it must be {ALLOWED[field]}.", param)
    code = "wrong_type" if entry["type"].endswith("_type") else "invalid_value"
    found = strict_json.describe(entry["input"])
    beside = f" at {strict_json.describe(path[2])}" if len(path) > 2 else ""
    return Problem(code, f"{param} is {found}{beside}; it must be {ALLOWED[field]}.", param)
