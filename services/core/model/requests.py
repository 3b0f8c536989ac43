"""What a client may ask for: the fields of a request, their limits, and the messages for invalid ones."""

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from services.core.model import classes, strict_json, suggestions
from services.core.model.body import Body
from services.core.model.errors import Problem
from services.core.model.specs import DEFAULT_STRENGTH, SEED_LIMIT, OutputFormat

PROMPT_LIMIT = 2_000
IMAGES_PER_REQUEST = 1_000
GUIDANCE_LIMIT = 50.0
METADATA_LIMIT = 4_096  # bytes, as compact JSON
METADATA_NAME = 64  # characters
CHUNKS_PER_DRAFT = 1_000_000
PRIORITIES = {"high": 0, "normal": 1, "low": 2}

_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# People save files under custom_ids: no dot at either end, and no name that Windows reserves for a device.
_CUSTOM_ID = re.compile(
    r"(?!(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$))[a-z0-9_-](?:[a-z0-9._-]{0,126}[a-z0-9_-])?",
    re.IGNORECASE | re.ASCII,
)
_IMAGE = re.compile(r"file-[0-9a-hjkmnp-tv-z]{13}|job_[0-9a-hjkmnp-tv-z]{13}/[0-9]{1,10}")
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")

RETRIED_INDEXES = 5_000
ALLOWED = {
    "prompt": f"text of 1 to {PROMPT_LIMIT:,} characters, not only spaces",
    "negative_prompt": f"text of at most {PROMPT_LIMIT:,} characters",
    "seed": "a whole number from 0 to 9223372036854775807",
    "size": 'width and height in pixels, such as "512x512"',
    "num_inference_steps": "a whole number from 1",
    "guidance_scale": "a number from 0 to 50",
    "n": f"a whole number from 1 to {IMAGES_PER_REQUEST:,}",
    "custom_id": "1 to 128 of A-Z a-z 0-9 . _ -, with no dot at either end",
    "output_format": '"png", "jpeg" or "webp"',
    "output_compression": "a whole number from 0 to 100 with output_format jpeg or webp, or 100 with png",
    "model": "the name of a model",
    "image": 'the id of a file of purpose "vision", an earlier image as "job_.../INDEX", or a data URL of a PNG, JPEG '
    "or WebP in base64",
    "strength": f"a number above 0 and at most 1, beside image; {DEFAULT_STRENGTH} unless given",
    "reproducibility_class": "a class as GET /v1/models lists them: REVISION/BACKEND/PRECISION/DEVICE KIND/BATCH SIZE",
    "metadata": f"a flat object of at most {METADATA_LIMIT:,} bytes as JSON",
    "metadata.*": "text, a number, true, false or null, under a name of 1 to 64 characters",
    "images": "a list of at least one request",
    "defaults": "an object with fields of a request other than prompt and custom_id",
    "priority": '"high", "normal" or "low"',
    "dedupe": "true or false",
    "embed_prompt": "true or false",
    "store": '"objects" (one for each image) or "shards" (tars of many images)',
    "retention": "an object with days from 0 to 36500, or null for ever, under payloads, objects and records",
    "labels": "an object of at most 16 texts; names of up to 64 characters, values of up to 512",
    "cause": "the code of a cause, as the job's failures list them",
    "indexes": f"a list of 1 to {RETRIED_INDEXES:,} indexes of failed images",
    "include_cancelled": "true or false",
}


def is_blank(value: str) -> bool:
    """Whether it is empty or only spaces."""
    return not value or value.isspace()


def is_forbidden(value: str) -> bool:
    """Whether it holds a character that no text may hold."""
    return not value.isprintable() and _FORBIDDEN.search(value) is not None


def is_custom_id(value: str) -> bool:
    """Whether it may be a request's custom_id."""
    return _CUSTOM_ID.fullmatch(value) is not None


def _text(value: str) -> str:
    if value.isprintable():  # nearly every text is, and this is faster than the search
        return value
    found = _FORBIDDEN.search(value)
    if found:
        raise PydanticCustomError(
            "invalid_character", "{point}", {"point": f"U+{ord(found[0]):04X} at {found.start()}"}
        )
    return value


def _prompt(value: str) -> str:
    if is_blank(value):
        raise PydanticCustomError("empty", "")
    return _text(value)


def _custom_id(value: str) -> str:
    if not is_custom_id(value):
        raise PydanticCustomError("invalid_value", "")
    return value


def _size(value: str) -> str:
    if not _SIZE.fullmatch(value):
        raise PydanticCustomError("invalid_value", "")
    return value


def _image(value: str) -> str:
    if not _IMAGE.fullmatch(value) and not _DATA_URL.fullmatch(value):
        raise PydanticCustomError("invalid_value", "")
    return value


def is_picture_id(value: str) -> bool:
    """Whether it looks like the id of a file or of an earlier image."""
    return _IMAGE.fullmatch(value) is not None


def _class(value: str) -> str:
    if classes.parse(value) is None:
        raise PydanticCustomError("invalid_value", "")
    return value


def is_data_url(image: str) -> bool:
    """Whether a checked `image` is the picture itself."""
    return image.startswith("data:")


def size_pixels(size: str) -> tuple[int, int]:
    """(width, height) of a checked size such as "768x512"."""
    width, height = size.split("x")
    return int(width), int(height)


def _no_minus_zero(value: float) -> float:
    return value + 0.0


def _metadata_value(value: Any) -> Any:
    if isinstance(value, str):
        _text(value.replace("\r\n", "\n"))
        return value  # unchanged: it is the client's own
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("invalid_value", "")
    if value is None or isinstance(value, bool | int | float):
        return value
    raise PydanticCustomError("metadata_type", "")


def metadata_text(value: Mapping[str, Any]) -> str:
    """Metadata as it is stored and exported: compact JSON with sorted names."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _metadata_size(value: dict[str, Any]) -> dict[str, Any]:
    size = len(metadata_text(value).encode())
    if size > METADATA_LIMIT:
        raise PydanticCustomError("object_too_long", "{found}", {"found": f"an object of {size:,} bytes"})
    return value


# By the type of pydantic's error, or of one raised above.
_CODES = {"string_too_long": "too_long", "string_unicode": "invalid_character", "object_too_long": "too_long"}

_PRINTABLE = r"[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]"  # what `_text` accepts, for readers of the schema
_LINES = rf"(?:{_PRINTABLE}|\r\n)"


def _documented(pattern: str, **more: Any) -> Any:
    return Field(json_schema_extra={"pattern": f"^{pattern}$", **more})


Text = Annotated[str, Field(max_length=PROMPT_LIMIT), _documented(_LINES + "*"), AfterValidator(_text)]
Size = Annotated[str, _documented(_SIZE.pattern, example="512x512"), AfterValidator(_size)]
Steps = Annotated[int, Field(ge=1, le=10_000)]
Guidance = Annotated[float, Field(ge=0, le=GUIDANCE_LIMIT, allow_inf_nan=False), AfterValidator(_no_minus_zero)]
Strength = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Class = Annotated[
    str,
    Field(max_length=classes.LIMIT),
    _documented(classes.PATTERN, example="revision-0123456789ab/torch/fp16/NVIDIA H200/16"),
    AfterValidator(_class),
]
MetadataValue = str | int | float | bool | None
Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=METADATA_NAME), AfterValidator(_text)],
        Annotated[MetadataValue, PlainValidator(_metadata_value)],
    ],
    AfterValidator(_metadata_size),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"minLength": 1, "maxLength": 64, "pattern": f"^{_PRINTABLE}+$"},
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "pattern": f"^{_PRINTABLE}*$"},
                    *({"type": kind} for kind in ("integer", "number", "boolean", "null")),
                ]
            },
            "description": ALLOWED["metadata"],
        }
    ),
]
ModelName = Annotated[str, Field(max_length=200), _documented(_PRINTABLE + "*"), AfterValidator(_text)]


class Defaults(Body):
    """The fields that a submission may set for all of its requests at once. None: not set."""

    negative_prompt: Text = ""
    seed: Annotated[int, Field(ge=0, lt=SEED_LIMIT)] = None  # type: ignore[assignment]
    size: Size = None  # type: ignore[assignment]
    num_inference_steps: Steps = None  # type: ignore[assignment]
    guidance_scale: Guidance = None  # type: ignore[assignment]
    n: Annotated[int, Field(ge=1, le=IMAGES_PER_REQUEST)] = 1
    output_format: OutputFormat = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = None  # type: ignore[assignment]
    model: ModelName = None  # type: ignore[assignment]
    image: Annotated[str, _documented(f"({_IMAGE.pattern}|{_DATA_URL.pattern})"), AfterValidator(_image)] = None  # type: ignore[assignment]
    strength: Strength = None  # type: ignore[assignment]
    metadata: Metadata = None  # type: ignore[assignment]
    reproducibility_class: Class = None  # type: ignore[assignment]


class ImageRequest(Defaults):
    """One request: a prompt and what it should become."""

    DIGITS: ClassVar = frozenset({"custom_id"})
    prompt: Annotated[
        str,
        Field(max_length=PROMPT_LIMIT),
        _documented(_LINES + r"*[^\s\u0000-\u001f\u007f-\u009f]" + _LINES + "*"),
        AfterValidator(_prompt),
    ]
    custom_id: Annotated[
        str,
        Field(max_length=128),
        _documented("[A-Za-z0-9_-]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?"),
        AfterValidator(_custom_id),
    ] = None  # type: ignore[assignment]


def read_plain(line: bytes) -> ImageRequest | None:
    """Parses a valid line in one fast pass. None: the line needs the strict reader, which also explains what is wrong.

    Each key brings a colon. So if the line has as many colons as the request has keys, no key appears twice.
    """
    try:
        request = _READER.validate_json(line)
    except ValidationError:
        return None
    keys = len(request.model_fields_set)
    if request.metadata:
        keys += len(request.metadata)
    return request if line.count(b":") == keys else None


_READER = TypeAdapter(ImageRequest)


Priority = Literal["high", "normal", "low"]
Store = Literal["objects", "shards"]
Labels = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64), _documented(_PRINTABLE + "+"), AfterValidator(_text)],
        Annotated[str, Field(max_length=512), _documented(_PRINTABLE + "*"), AfterValidator(_text)],
    ],
    Field(max_length=16),
]


_KINDS = ("payloads", "objects", "records")


def _kinds(given: dict[str, int | None]) -> dict[str, int | None]:
    if set(given) - set(_KINDS):
        raise ValueError("unknown kind")
    return given


Retention = Annotated[
    dict[str, Annotated[int, Field(ge=0, le=36_500)] | None],
    AfterValidator(_kinds),
    Field(description="For how many days after its end the job keeps its prompts, its objects and its records."),
]


class JobOptions(Body):
    """The options of a submission: everything except its requests."""

    priority: Priority = "normal"
    dedupe: bool = False
    embed_prompt: bool = False
    labels: Labels = Field(default_factory=dict)
    retention: Retention | None = None
    store: Store = "objects"

    def not_set(self) -> set[str]:
        """The fields that Idempotency-Keys of the release before do not cover."""
        return {name for name, usual in (("retention", None), ("store", "objects")) if getattr(self, name) == usual}

    @property
    def in_shards(self) -> bool:
        return self.store == "shards"


def warnings(requests: int, *, dedupe: bool, drawn_seeds: int) -> list[str]:
    """What is allowed and yet hardly meant. `drawn_seeds` of the requests give no seed."""
    if not dedupe or not drawn_seeds:
        return []
    which = (
        "no request has a seed" if drawn_seeds == requests else f"{drawn_seeds:,} of {requests:,} requests have none"
    )
    nothing = "nothing" if drawn_seeds == requests else "only images of requests with a seed"
    return [f"dedupe reuses {nothing}: {which}, so each draws a new one; the same seed again reuses an image."]


class NoOptions(Body):
    """The options of a body that has none."""


class JobChanges(Body):
    """The fields of an existing job that may be changed. None: unchanged; null is refused."""

    NULL_IS_ABSENT: ClassVar = False
    priority: Priority = None  # type: ignore[assignment]
    labels: Labels = None  # type: ignore[assignment]


class RetryOptions(JobChanges):
    """Which failed images are tried again, and how. Without `cause` and `indexes` all are. Fields that are not set are
    taken from the first job."""

    NULL_IS_ABSENT: ClassVar = True
    include_cancelled: bool = False
    cause: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_text)] = None  # type: ignore[assignment]
    indexes: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=RETRIED_INDEXES)] = (
        None  # type: ignore[assignment]
    )


class EstimateShape(Body):
    """A number of images of one shape, for an estimate. Fields that are not set take the model's defaults."""

    ALLOWED: ClassVar = {
        "images": "a whole number from 1 to 2,147,483,647",
        "model": ALLOWED["model"],
        "size": ALLOWED["size"],
        "num_inference_steps": ALLOWED["num_inference_steps"],
        "guidance_scale": ALLOWED["guidance_scale"],
    }
    images: Annotated[int, Field(ge=1, lt=2**31)]
    model: ModelName = None  # type: ignore[assignment]
    size: Size = None  # type: ignore[assignment]
    num_inference_steps: Steps = None  # type: ignore[assignment]
    guidance_scale: Guidance = None  # type: ignore[assignment]


class FinalizeRequest(Body):
    """What a complete draft holds: the client's own count, checked before the draft is queued."""

    ALLOWED: ClassVar = {
        "chunks": "a whole number from 1 to 1,000,000: how many chunks were appended",
        "images": "a whole number from 1: how many images they hold",
    }
    chunks: Annotated[int, Field(ge=1, le=CHUNKS_PER_DRAFT)]
    images: Annotated[int, Field(ge=1, lt=2**31)] = None  # type: ignore[assignment]


def problems(
    error: ValidationError,
    value: object,
    line: int | None = None,
    prefix: str = "",
    allowed: dict[str, str] = ALLOWED,
) -> list[Problem]:
    """Translates pydantic's errors: each names the field, the value found and what is `allowed`."""
    found = error.errors(include_url=False, include_context=True)
    return [_problem(entry, value, line, prefix, allowed, error.title) for entry in found]


def _problem(
    entry: Any, value: object, line: int | None, prefix: str, allowed: dict[str, str], kind_of: str
) -> Problem:
    field = str(entry["loc"][0]) if entry["loc"] else ""
    param = (
        strict_json.place(*(part for part in entry["loc"] if part != "[key]"), prefix=prefix)
        if field in allowed
        else prefix + "request"
    )
    kind = entry["type"]
    if kind == "extra_forbidden" and len(entry["loc"]) > 1 and field in allowed:
        known = [name.partition(".")[2] for name in allowed if name.startswith(f"{field}.")]
        return Problem(
            "unknown_field", suggestions.unknown_field(str(entry["loc"][1]), known, f" in {field}"), param, line
        )
    if kind == "extra_forbidden" or (kind == "string_unicode" and not field):  # the latter: a name that is not Unicode
        field = field or str(entry["input"])
        shown = strict_json.describe(field)
        name = field if field.isascii() and field.isidentifier() else shown
        return Problem("unknown_field", _unknown(field, kind_of, allowed), f"{prefix}{name}"[:80], line)
    if kind == "missing":
        return Problem("missing_field", f"{prefix}{field} is missing; it must be {allowed[field]}.", param, line)
    if not field:
        return Problem(
            "wrong_type", f"Found {strict_json.describe(value)} where a request object is expected.", param, line
        )
    own = [f"{field}.{entry['loc'][1]}", f"{field}.*"] if len(entry["loc"]) > 1 else []
    rule = next((allowed[name] for name in own if name in allowed), allowed[field])
    if kind == "invalid_character":
        message = f"{param} holds the character {entry['msg']}; it must be {rule}, no controls."
        return Problem("invalid_character", message, param, line)
    code = "wrong_type" if kind.endswith("_type") else _CODES.get(kind, "invalid_value")
    if kind == "int_type" and isinstance(entry["input"], float) and entry["input"].is_integer():
        rule += ", and one of 2^53 or more is written without a fraction or an exponent"
    found = entry["msg"] if kind == "object_too_long" else strict_json.describe(entry["input"])
    return Problem(code, f"{param} is {found}; it must be {rule}.", param, line)


def _unknown(name: str, model: str, allowed: Mapping[str, str]) -> str:
    """The sentence about an unknown field of that model: where it belongs, or what was meant."""
    if model == "JobOptions" and name in ImageRequest.model_fields:
        return f"{name} is a field of a request; defaults may hold it for all of them."
    if model == "ImageRequest" and name in JobOptions.model_fields:
        return f"{name} is an option of the job and stands beside images, not in a request."
    if model == "Defaults" and name in ImageRequest.model_fields:
        return f"{name} has no default; each request has its own."
    kinds: tuple[type[Body], ...] = (ImageRequest, Defaults, JobOptions, JobChanges, RetryOptions)
    fields = {kind.__name__: kind.model_fields for kind in kinds}
    return suggestions.unknown_field(name, fields.get(model, allowed))
