"""What a catalogue is: its source, its variants, and when and how it is published. The schema of the file and the API.

Every refusal is a Problem that names the field. Templates are compiled here; cron expressions are checked by whoever
schedules.
"""

import re
import zoneinfo
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from services.core.catalogues import copy_names, templates
from services.core.items import delimited, encodings
from services.core.items.errors import WrongOption
from services.core.items.input_file import EXTENSIONS
from services.core.model import requests, strict_json, suggestions
from services.core.model.body import Body
from services.core.model.errors import Problem
from services.core.model.requests import Guidance, ModelName, Size, Steps, Strength
from services.core.model.specs import SEED_LIMIT, OutputFormat

MAX_VARIANTS = 32
BY_ID = "by-id"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?", re.ASCII)
_TIME = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_PLACE = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9!_.*'()~=,@+-]+)*/?", re.ASCII)
_NAME_RULE = "1 to 64 of a-z 0-9 _ -, with a letter or digit at either end"
_FOLDER_LIMIT = 100
_SHARE = "a number from 0 to 1, such as 0.98"


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise PydanticCustomError("invalid_value", "")
    return value


def _place(value: str) -> str:
    if not _PLACE.fullmatch(value) or len(value.partition("/")[2]) > _FOLDER_LIMIT:
        raise PydanticCustomError("invalid_value", "")
    return value


def _time(value: str) -> str:
    if not _TIME.fullmatch(value):
        raise PydanticCustomError("invalid_value", "")
    return value


def _zone(value: str) -> str:
    if value not in zoneinfo.available_timezones():
        raise PydanticCustomError("invalid_value", "")
    return value


def _seed(value: Any) -> Any:
    if value != BY_ID and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < SEED_LIMIT):
        raise PydanticCustomError("invalid_value", "")
    return value


def _template(value: str) -> str:
    templates.Template(value)
    return value


def _condition(value: str) -> str:
    templates.Condition(value)
    return value


def _compiled(check: Any) -> Any:
    """A template's own sentence becomes the field's."""

    def run(value: str) -> str:
        try:
            return str(check(value))
        except templates.BadTemplate as error:
            raise PydanticCustomError("invalid_template", "{reason}", {"reason": str(error)}) from None

    return AfterValidator(run)


Name = Annotated[str, Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"}), AfterValidator(_name)]
Text = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(requests._text)]  # noqa: SLF001
Prompt = Annotated[str, Field(min_length=1, max_length=templates.SOURCE_LIMIT), _compiled(_template)]
When = Annotated[str, Field(min_length=1, max_length=templates.SOURCE_LIMIT), _compiled(_condition)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[
    Any,
    BeforeValidator(_seed),
    WithJsonSchema({"anyOf": [{"const": BY_ID}, {"type": "integer", "minimum": 0, "exclusiveMaximum": SEED_LIMIT}]}),
]


class SourceFields(Body):
    """Where the items are: exactly one of url, file and s3, and how to read what is there."""

    url: Annotated[str, Field(min_length=1, max_length=2048)] = None  # type: ignore[assignment]
    file: Annotated[str, Field(min_length=1, max_length=512)] = None  # type: ignore[assignment]
    s3: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.{1,1024}$")] = None  # type: ignore[assignment]
    format: Literal["jsonl", "csv", "tsv", "xlsx", "parquet"] = None  # type: ignore[assignment]
    delimiter: Annotated[str, Field(min_length=1, max_length=9)] = None  # type: ignore[assignment]
    encoding: Annotated[str, Field(min_length=1, max_length=40)] = None  # type: ignore[assignment]


class ScheduleFields(Body):
    """When it runs, and by when it should be published."""

    cron: Annotated[str, Field(min_length=1, max_length=200)]
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    deadline: Annotated[str, Field(json_schema_extra={"pattern": f"^{_TIME.pattern}$"}), AfterValidator(_time)] = None  # type: ignore[assignment]


class DestinationFields(Body):
    """Where each published version is copied to, and what its pictures are called there."""

    s3: Annotated[str, Field(json_schema_extra={"pattern": f"^{_PLACE.pattern}$"}), AfterValidator(_place)]
    name: Annotated[str, Field(min_length=1, max_length=1024), _compiled(_template)] = copy_names.USUAL

    @property
    def place(self) -> str:
        """The bucket and the folder, without a slash at the end."""
        return self.s3.rstrip("/")


class PublishFields(Body):
    """What must hold for a version to take the place of the one before, and where it is copied to."""

    atomic: Literal[True] = True
    require: Share = 1.0
    review: Literal["none", "changed"] = "none"
    public: bool = False
    undecided: Literal["accept", "reject"] = "reject"
    to: DestinationFields = None  # type: ignore[assignment]


class Variant(Body):
    """One picture of each item."""

    prompt: Prompt
    negative_prompt: Annotated[str, Field(max_length=templates.SOURCE_LIMIT), _compiled(_template)] = ""
    when: When = None  # type: ignore[assignment]
    size: Size = None  # type: ignore[assignment]
    num_inference_steps: Steps = None  # type: ignore[assignment]
    guidance_scale: Guidance = None  # type: ignore[assignment]
    output_format: OutputFormat = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = None  # type: ignore[assignment]
    model: ModelName = None  # type: ignore[assignment]
    seed: Seed = None
    image: Prompt = None  # type: ignore[assignment]
    strength: Strength = None  # type: ignore[assignment]
    reproducibility_class: requests.Class = None  # type: ignore[assignment]


class Definition(Body):
    """A catalogue. Its name stands outside: in the file's `[catalogue.NAME]`, or in the address."""

    source: SourceFields
    id: Text
    seed: Seed = BY_ID
    model: ModelName = None  # type: ignore[assignment]
    reproducibility_class: requests.Class = None  # type: ignore[assignment]
    schedule: ScheduleFields = None  # type: ignore[assignment]
    publish: PublishFields = Field(default_factory=PublishFields)
    keep: Annotated[int, Field(ge=1, le=1000)] = 14
    removed_limit: Share = 0.2
    rerender: Annotated[float, Field(gt=0, le=1)] = 1.0
    variants: Annotated[dict[Name, Variant], Field(min_length=1, max_length=MAX_VARIANTS)]

    ALLOWED: ClassVar[dict[str, str]] = {
        "source": "an object with one of url, file and s3",
        "source.url": 'an https address such as "https://shop.example/feed.csv"',
        "source.file": "the path of a file for the command, or the id of an uploaded file",
        "source.s3": 'a bucket and a key, such as "feeds/shop/feed.parquet"',
        "source.format": '"jsonl", "csv", "tsv", "xlsx" or "parquet"; left out, the name\'s ending shows it',
        "source.delimiter": "one character, or comma, semicolon, tab, pipe or space",
        "source.encoding": "an encoding such as utf-8, utf-16, cp1252 or gb18030",
        "id": "the name of the column that identifies an item",
        "seed": f'"{BY_ID}", or {requests.ALLOWED["seed"]}',
        "model": requests.ALLOWED["model"],
        "reproducibility_class": requests.ALLOWED["reproducibility_class"],
        "schedule": "an object with cron, and timezone and deadline if needed",
        "schedule.cron": 'a cron expression such as "0 1 * * *"',
        "schedule.timezone": 'a time zone such as "Europe/Berlin"',
        "schedule.deadline": 'a time of day in quotes, such as "06:00"',
        "publish": "an object with require and review",
        "publish.atomic": "true: a version is published as a whole or not at all",
        "publish.require": f"{_SHARE}: the share of good images without which the version before stays",
        "publish.public": "true or false: whether everybody who knows a link sees the published pictures",
        "publish.review": '"changed": a person accepts what changed until the deadline; or "none"',
        "publish.undecided": '"accept" or "reject": what happens to changed images without a mark at the deadline',
        "publish.to": "an object with s3, and name if needed",
        "publish.to.s3": f'a bucket and a folder of up to {_FOLDER_LIMIT} characters, such as "shop-pictures/live"',
        "publish.to.name": f"a template of {', '.join(copy_names.FIELDS)}, such as {copy_names.USUAL!r}",
        "keep": "a whole number from 1 to 1,000: how many versions are kept",
        "removed_limit": f"{_SHARE}: if more of the items have gone, a person decides",
        "rerender": "a number above 0, up to 1: the share of the items that a run renders anew for a new model",
        "variants": f"an object of 1 to {MAX_VARIANTS} variants by name, a name being {_NAME_RULE}",
        "variants.*": "an object with a prompt",
        "variants.*.prompt": f"a template of 1 to {templates.SOURCE_LIMIT:,} characters",
        "variants.*.negative_prompt": f"a template of at most {templates.SOURCE_LIMIT:,} characters",
        "variants.*.when": 'a condition such as "stock > 0"',
        "variants.*.seed": f'"{BY_ID}", or {requests.ALLOWED["seed"]}',
        "variants.*.image": "a template that gives the photograph to redraw: an https address, the id of a file of "
        'purpose "vision", or an earlier image as "job_.../INDEX"',
        **{
            f"variants.*.{name}": requests.ALLOWED[name]
            for name in (
                "size",
                "num_inference_steps",
                "guidance_scale",
                "output_format",
                "output_compression",
                "model",
                "strength",
                "reproducibility_class",
            )
        },
    }

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> Self:
        return super().model_validate(_without_nulls(obj), **how)

    def seed_of(self, variant: Variant) -> str | int:
        """The rule for a variant's seeds: its own, or else the catalogue's."""
        rule: str | int = self.seed if variant.seed is None else variant.seed
        return rule


def _described(prefix: str) -> dict[str, str]:
    """What ALLOWED says of the fields below a prefix."""
    below = {key.removeprefix(prefix): text for key, text in Definition.ALLOWED.items() if key.startswith(prefix)}
    return {name: text for name, text in below.items() if "." not in name}


DESCRIPTIONS = {  # of the fields of each part
    "Definition": _described(""), "SourceFields": _described("source."), "ScheduleFields": _described("schedule."),
    "PublishFields": _described("publish."), "DestinationFields": _described("publish.to."),
    "Variant": _described("variants.*."),
}  # fmt: skip


def read(name: str, value: object) -> tuple[Definition | None, list[Problem]]:
    """Checks a definition: (the definition, []), or (None, its problems)."""
    if not NAME.fullmatch(name):
        message = f"The catalogue's name is {strict_json.describe(name)}; it must be {_NAME_RULE}."
        return None, [Problem("invalid_name", message, "name")]
    try:
        found = Definition.model_validate(value)
    except ValidationError as error:
        return None, [_problem(entry, value) for entry in error.errors(include_url=False)]
    problems = [*_source_problems(found), *_variant_problems(found), *_destination_problems(found)]
    return (None, problems) if problems else (found, [])


def json_schema() -> dict[str, Any]:
    """Of the file: each catalogue by its name."""
    schema = Definition.model_json_schema()
    definitions = schema.pop("$defs", {})
    definitions["Definition"] = schema
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Presswork catalogues",
        "type": "object",
        "required": ["catalogue"],
        "additionalProperties": False,
        "properties": {
            "catalogue": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": f"^{NAME.pattern}$"},
                "additionalProperties": {"$ref": "#/$defs/Definition"},
            }
        },
        "$defs": definitions,
    }


def _without_nulls(value: object) -> Any:
    """A null leaves an optional field out, also in a variant."""
    if not isinstance(value, Mapping) or not isinstance(value.get("variants"), Mapping):
        return value
    variants = {
        name: {field: given for field, given in variant.items() if given is not None}
        if isinstance(variant, Mapping)
        else variant
        for name, variant in value["variants"].items()
    }
    return {**value, "variants": variants}


def _source_problems(found: Definition) -> list[Problem]:
    given = [name for name in ("url", "file", "s3") if getattr(found.source, name) is not None]
    if len(given) != 1:
        named = " and ".join(given) or "none of url, file and s3"
        return [Problem("invalid_value", f"source has {named}; it must have exactly one of them.", "source")]
    for name, check in (("delimiter", delimited.mark), ("encoding", encodings.named)):
        value = getattr(found.source, name)
        try:
            if value is not None:
                check(value)
        except WrongOption:
            message = f"source.{name} is {strict_json.describe(value)}; it must be"
            rule = Definition.ALLOWED[f"source.{name}"]
            return [Problem("invalid_value", f"{message} {rule}.", f"source.{name}")]
    if found.source.format is None and given[0] != "file":
        address = str(getattr(found.source, given[0])).partition("?")[0].partition("#")[0].removesuffix(".gz")
        ending = "." + address.rpartition("/")[2].rpartition(".")[2].lower()
        if EXTENSIONS.get(ending, "lines") == "lines":
            message = f"source.format is missing, and source.{given[0]} has none of the known endings; it must be"
            return [Problem("missing_field", f"{message} {Definition.ALLOWED['source.format']}.", "source.format")]
    return []


def _destination_problems(found: Definition) -> list[Problem]:
    """What is wrong with the names at the destination, whatever the items are."""
    if found.publish.to is None:
        return []
    names, where = copy_names.Names(found.publish.to.name), "publish.to.name"
    if unknown := sorted(names.fields - set(copy_names.FIELDS)):
        known = ", ".join(copy_names.FIELDS)
        return [Problem("invalid_template", f"{where}: there is no field {unknown[0]}; there are {known}.", where)]
    needed = ["item"] + ["variant"] * (len(found.variants) > 1)
    if missing := [name for name in needed if name not in names.fields]:
        message = f"{where} lacks {{{{ {missing[0]} }}}}; each picture needs a name of its own."
        return [Problem("invalid_template", message, where)]
    try:
        names.of("item", next(iter(found.variants)), bytes(32), "png")
    except templates.Inapplicable as error:
        return [Problem("invalid_template", f"{where}: {error}", where)]
    return []


def _variant_problems(found: Definition) -> list[Problem]:
    problems = []
    for name, variant in found.variants.items():
        at = f"variants.{name}"
        if variant.output_compression not in (None, 100) and variant.output_format == "png":
            rule = f"is {variant.output_compression}; it must be {requests.ALLOWED['output_compression']}."
            param = f"{at}.output_compression"
            problems.append(Problem("invalid_value", f"{param} {rule}", param))
        if variant.strength is not None and variant.image is None:
            message = f"{at}.strength needs an image beside it."
            problems.append(Problem("invalid_value", message, f"{at}.strength"))
    return problems


def _problem(entry: Any, value: object) -> Problem:
    path = [str(part) for part in entry["loc"] if part != "[key]"]
    if not path:
        shown = strict_json.describe(value)
        return Problem("wrong_type", f"The catalogue is {shown}; it must be an object with source, id and variants.")
    key = ".".join("*" if at == 1 and path[0] == "variants" else part for at, part in enumerate(path))
    param, kind = strict_json.place(*path), entry["type"]
    if kind == "extra_forbidden":
        outer, known = path[:-1], _fields_of(key.rpartition(".")[0])
        where = f" in {strict_json.place(*outer)}" if outer else " in a catalogue"
        return Problem("unknown_field", suggestions.unknown_field(path[-1], known, where), param)
    if "[key]" in entry["loc"]:
        message = f"variants has the name {strict_json.describe(path[1])}; a name must be {_NAME_RULE}."
        return Problem("invalid_name", message, "variants")
    rule = Definition.ALLOWED[key]
    if kind == "missing":
        return Problem("missing_field", f"{param} is missing; it must be {rule}.", param)
    if kind == "invalid_template":
        return Problem("invalid_template", f"{param}: {entry['msg']}", param)
    code = "wrong_type" if kind.endswith("_type") else "too_long" if kind == "string_too_long" else "invalid_value"
    found = _count(entry["input"]) if kind in ("too_long", "too_short") else strict_json.describe(entry["input"])
    return Problem(code, f"{param} is {found}; it must be {rule}.", param)


def _count(value: Any) -> str:
    return f"an object of {len(value)}" if value else "empty"


def _fields_of(key: str) -> list[str]:
    """The names that may stand in the object at `key`, as ALLOWED lists them."""
    begin = f"{key}." if key else ""
    return [
        name.removeprefix(begin)
        for name in Definition.ALLOWED
        if name.startswith(begin) and name.count(".") == begin.count(".")
    ]
