"""OpenAPI schemas of the bodies that FastAPI does not parse, and of the Idempotency-Key header. `document.py` gives
those with a title a name of their own."""

from typing import Any

from pydantic import BaseModel

from services.core.model import requests
from services.core.model.templates import FIELDS, MAX_NAMES
from services.core.schedules.asked import ScheduleRequest
from services.core.schedules.targets import BatchRequest, CatalogueRequest

_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "Names this request. If it is sent again with the same body, the first answer is repeated.",
}
IDEMPOTENT: dict[str, Any] = {"parameters": [_KEY]}


def body(model: type[BaseModel], required: bool = True) -> dict[str, Any]:
    """A small JSON object."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": required, "content": content}}


def submission_body() -> dict[str, Any]:
    """A job: requests in a list, a matrix of them, or a draft that holds none yet. Or one request a line."""
    head, defaults = _head(), _defaults()
    shared = {"defaults": defaults, "draft": {"anyOf": [{"const": False}, {"type": "null"}]}, **head}
    forms = [
        _object("ImagesSubmission", {"images": _images(), **shared}, "images"),
        _object("MatrixSubmission", {"matrix": _matrix(), **shared}, "matrix"),
        _object("DraftSubmission", {"draft": {"const": True}, **_options()}, "draft"),
    ]
    return _json_or_lines({"title": "Submission", "oneOf": forms})


def chunk_body() -> dict[str, Any]:
    return _json_or_lines(_object("ChunkSubmission", {"images": _images(), "defaults": _defaults()}, "images"))


def matrix_body() -> dict[str, Any]:
    head, defaults = _head(), _defaults()
    return _json(_object("PreviewRequest", {"matrix": _matrix(), "defaults": defaults, **head}, "matrix"))


def estimate_body(shape: type[BaseModel], max_shapes: int) -> dict[str, Any]:
    head, defaults = _head(), _defaults()
    shapes = {"type": "array", "minItems": 1, "maxItems": max_shapes, "items": shape.model_json_schema()}
    forms = [
        _object("ImagesEstimate", {"images": _images(), "defaults": defaults, **head}, "images"),
        _object("MatrixEstimate", {"matrix": _matrix(), "defaults": defaults, **head}, "matrix"),
        _object("ShapesEstimate", {"shapes": shapes, "priority": head["priority"]}, "shapes"),
    ]
    return _json({"title": "EstimateRequest", "oneOf": forms})


def schedule_body(*required: str) -> dict[str, Any]:
    """A schedule, whose target is one of its kinds."""
    schema = ScheduleRequest.model_json_schema()
    title = "NewSchedule" if required else schema["title"]
    head, defaults = _head(), _defaults()
    jobs = [
        _object("ScheduledImages", {"images": _images(), "defaults": defaults, **head}, "images"),
        _object("ScheduledMatrix", {"matrix": _matrix(), "defaults": defaults, **head}, "matrix"),
    ]
    kinds = [
        _object("ToJob", {"job": {"title": "ScheduledJob", "oneOf": jobs}}, "job"),
        _object("ToBatch", {"batch": BatchRequest.model_json_schema() | {"title": "BatchTarget"}}, "batch"),
        _object(
            "ToCatalogue",
            {"catalogue": CatalogueRequest.model_json_schema() | {"title": "CatalogueTarget"}},
            "catalogue",
        ),
    ]
    target = {"title": "ScheduleTarget", "oneOf": kinds}
    properties = schema["properties"] | {"target": target}
    if required:
        properties["name"] = properties["name"] | {"type": "string"}
    schema |= {"title": title, "properties": properties, "required": [*schema["required"], *required]}
    return {"requestBody": _json(schema)}


def _options() -> dict[str, Any]:
    found: dict[str, Any] = requests.JobOptions.model_json_schema()["properties"]
    return found


def _head() -> dict[str, Any]:
    """The options of a job, and the class in which all of its images are rendered."""
    name = "reproducibility_class"
    return _options() | {name: requests.Defaults.model_json_schema()["properties"][name]}


def _defaults() -> dict[str, Any]:
    return {"anyOf": [requests.Defaults.model_json_schema(), {"type": "null"}]}


def _images() -> dict[str, Any]:
    one = requests.ImageRequest.model_json_schema()
    return {"type": "array", "minItems": 1, "items": one, "description": requests.ALLOWED["images"]}


def _matrix() -> dict[str, Any]:
    defaults = requests.Defaults.model_json_schema()["properties"]
    template = {"type": "string", "maxLength": requests.PROMPT_LIMIT}
    values = {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}}
    vary = {"type": "object", "minProperties": 1, "maxProperties": MAX_NAMES, "additionalProperties": values}
    words = f"Names in braces in the template, or fields of a request: {', '.join(sorted(FIELDS))}."
    properties = {
        "template": template,
        "negative_template": template | {"type": ["string", "null"]},
        "vary": vary | {"propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"}, "description": words},
        "combine": {"anyOf": [{"enum": ["product", "zip"]}, {"type": "null"}], "default": "product"},
        "repeat": defaults["n"],
        "seed": defaults["seed"],
    }
    return _object("Matrix", properties, "template", "vary")


def _object(title: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "title": title,
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _json_or_lines(schema: dict[str, Any]) -> dict[str, Any]:
    one = requests.ImageRequest.model_json_schema()
    lines = {"type": "string", "description": "One request object a line.", "contentSchema": one}
    content = {"application/json": {"schema": schema}, "application/x-ndjson": {"schema": lines}}
    return {"required": True, "content": content}
