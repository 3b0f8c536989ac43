"""The OpenAPI document: what FastAPI knows of the routes, with names, limits and examples for people and generators.

An operation's id is the name of its handler.
"""

import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from services.api import examples, scopes, slots
from services.api.body import multipart, streaming
from services.api.body.json_object import SMALL_BYTES
from services.api.errors import PROBLEM
from services.api.exchange import REQUEST_ID
from services.api.openai import bodies, uploads
from services.core.bulk.asked import BulkRequest
from services.core.catalogues import asked as catalogues_asked
from services.core.catalogues import definition
from services.core.datasets import definition as datasets_asked
from services.core.exports import options
from services.core.marks.asked import MATCHING, MarksRequest
from services.core.model import key_requests, requests, retention_changes, view_requests
from services.core.schedules import asked, targets
from services.core.settings import Settings
from services.core.webhooks import asked as webhooks_asked

TAGS = {
    "jobs": "Submit images in bulk, watch them, and stop, retry or delete them.",
    "overview": "How it all goes.",
    "drafts": "Jobs of any size, sent in chunks.",
    "exports": "A finished job's images as files for other programs.",
    "datasets": "The images of many jobs as training data, version by version.",
    "schedules": "What is submitted at set times.",
    "webhooks": "What happens, sent to your programs.",
    "catalogues": "Feeds of items whose pictures are kept up to date, and published as a whole.",
    "images": "Images as bytes, and OpenAI's `images.generate`.",
    "batches": "OpenAI's batches. A batch is a job that is made from a file.",
    "files": "OpenAI's files: input and results of batches.",
    "uploads": "OpenAI's uploads: a large file in parts.",
    "models": "OpenAI's models: what can be asked for.",
    "keys": "Who may do what, and who did it.",
    "tenants": "Tenants, their quotas and their keys, for administrators of the operator's tenant.",
    "policy": "What may be asked for.",
    "retention": "For how long jobs keep their prompts, their images and their records.",
    "fleet": "The workers, which serve all tenants.",
    "monitoring": "For machines that watch this one. They need no key.",
}
_IDS = {  # of each path parameter: what it is, and an example
    "tenant_id": ("The tenant's id or its name.", "acme"),
    "job_id": ("The job's id.", "job_039y879re4x32"),
    "file_id": ("The file's id.", "file-039yaf9w3gxt6"),
    "batch_id": ("The batch's id.", "batch_039y879re4x32"),
    "upload_id": ("The upload's id.", "upload_039yaf9w3gxt6"),
    "export_id": ("The export's id.", "export_039yaf9w3gxt6"),
    "dataset": ("The dataset's name.", "mugs"),
    "dataset_id": ("The dataset's id.", "dataset_039yaf9w3gxt6"),
    "path": ("The file's path in the export or version.", "data/train-00000-of-00012.tar"),
    "index": ("The image's place in the job, from 0.", "0"),
    "name": ("The model's name.", "simulated"),
    "catalogue": ("The catalogue's name.", "shop"),
    "run_id": ("The run's id.", "run_039yaf9w3gxt6"),
    "version": ("The version's number.", "41"),
    "variant": ("The variant's name.", "front"),
    "item": ("The item's id, or `~` and base64url of it.", "sku-1"),
    "public_id": ("The catalogue's public id.", "Vd3-uT0qk8sXw1Zb"),
    "key_id": ("The key's id: the eight characters after `pw_`.", "Xk29dQ7a"),
    "schedule": ("The schedule's name.", "nightly"),
    "worker_id": ("The worker's id.", "gpu-1-4711-9f2c01ab"),
    "webhook_id": ("The webhook's id.", "whe_039yaf9w3gxt6"),
    "delivery_id": ("The delivery's id.", "whd_039yaf9w3gxt6"),
    "view_id": ("The view's id.", "view_039yaf9w3gxt6"),
    "term_id": ("The id of a term of the content policy.", "term_039yaf9w3gxt6"),
    "action_id": ("The act's id.", "bulk_039yaf9w3gxt6"),
    "number": ("The chunk's number, from 0.", 0),
}
_LOCATED = frozenset(
    {
        "submit_job", "finalize_draft", "retry_job", "create_export", "generate_images", "edit_image", "act_on_jobs",
        "run_schedule", "run_catalogue", "create_dataset", "export_dataset", "redraw_changes",
        "test_webhook", "redeliver",
    }
)  # fmt: skip
_LARGE = frozenset({"submit_job", "append_chunk", "preview_job", "estimate_job"})
_DOCUMENTS = frozenset(
    {
        "create_upload",
        "complete_upload",
        "create_batch",
        "generate_images",
        "put_catalogue",
        "create_dataset",
        "change_dataset",
        "add_sources",
        "remove_sources",
    }
)
_JSON, _NDJSON, _FORM = "application/json", "application/x-ndjson", "multipart/form-data"
_REF = "#/components/schemas/"
_ALLOWED = {  # what the descriptions of fields are taken from, by schema
    "ImageRequest": requests.ALLOWED, "GenerationRequest": requests.ALLOWED, "Defaults": requests.ALLOWED,
    "JobChanges": requests.ALLOWED, "RetryOptions": requests.ALLOWED, "EstimateShape": requests.EstimateShape.ALLOWED,
    "FinalizeRequest": requests.FinalizeRequest.ALLOWED, "ExportRequest": options.ALLOWED,
    "OptionsInput": options.ALLOWED, "KeyRequest": key_requests.KeyRequest.ALLOWED,
    "RetentionChanges": retention_changes.RetentionChanges.ALLOWED,
    "ViewRequest": view_requests.ALLOWED, "ViewChanges": view_requests.ALLOWED,
    "ScheduleRequest": asked.ALLOWED, "NewSchedule": asked.ALLOWED, "ScheduleChanges": asked.ScheduleChanges.ALLOWED,
    "WebhookRequest": webhooks_asked.ALLOWED, "WebhookChanges": webhooks_asked.ALLOWED,
    "BatchTarget": targets.BatchRequest.ALLOWED, "CatalogueTarget": targets.CatalogueRequest.ALLOWED,
    "BulkRequest": BulkRequest.ALLOWED, "MarksRequest": MarksRequest.ALLOWED, "Matching": MATCHING,
    "RunRequest": catalogues_asked.RunRequest.ALLOWED, "FileRequest": catalogues_asked.FileRequest.ALLOWED,
    **dict.fromkeys(
        ("DatasetRequest", "DatasetChanges", "DatasetSources", "DatasetFilters", "VersionRequest"),
        datasets_asked.ALLOWED,
    ),
    "PublishRequest": catalogues_asked.PublishRequest.ALLOWED, "RedrawRequest": catalogues_asked.RedrawRequest.ALLOWED,
    **definition.DESCRIPTIONS,
    **dict.fromkeys(("ImagesSubmission", "MatrixSubmission", "DraftSubmission", "ChunkSubmission"), requests.ALLOWED),
    **dict.fromkeys(("ImagesEstimate", "MatrixEstimate", "ShapesEstimate", "PreviewRequest"), requests.ALLOWED),
}  # fmt: skip
Schema = dict[str, Any]


def once(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The document without `servers`, which depend on the request."""
    if app.openapi_schema is None:
        app.openapi_schema = build(app, settings)
    return app.openapi_schema


def build(app: FastAPI, settings: Settings) -> dict[str, Any]:
    tags = [{"name": name, "description": text} for name, text in TAGS.items()]
    found = get_openapi(
        title=app.title, version=app.version, description=_description(settings), routes=app.routes, tags=tags
    )
    schemas = found["components"]["schemas"]
    for path, methods in found["paths"].items():
        for operation in methods.values():
            _complete(operation, settings)
            if "requestBody" in operation:
                operation["requestBody"] = _named(operation["requestBody"], schemas)
            if path.startswith("/v1/"):
                operation["responses"] |= _FAILURES
    for name, schema in schemas.items():
        for field, text in _ALLOWED.get(name, {}).items():
            if field in schema["properties"]:
                schema["properties"][field].setdefault("description", text)
        _untitle(schema)
    schemas["ProblemDetails"] = _PROBLEM
    found["components"] |= {"responses": _RESPONSES, "headers": _HEADERS}
    return found


def operation_id(route: APIRoute) -> str:
    return route.name


def max_bytes(operation: str, media: str, settings: Settings) -> int:
    """The longest body that this operation takes."""
    if media == _FORM:
        if operation == "edit_image":
            return settings.max_input_bytes + multipart.OVERHEAD_BYTES
        return (uploads.PART_LIMIT if operation == "add_part" else settings.max_file_bytes) + multipart.OVERHEAD_BYTES
    if operation in _LARGE:
        limit = settings.max_body_bytes
        return limit if media == _NDJSON else min(streaming.JSON_LIMIT, limit)
    return bodies.LIMIT if operation in _DOCUMENTS else SMALL_BYTES


def _complete(operation: dict[str, Any], settings: Settings) -> None:
    name = operation["operationId"]
    operation["summary"] = name.replace("_", " ").capitalize()
    operation["description"] = " ".join(operation["description"].split())
    if (scope := scopes.NEEDED.get(name)) is not None:
        operation["security"] = [{scheme: [scope.value] for scheme in given} for given in operation["security"]]
        operation["description"] += f" Takes a key with the scope `{scope.value}`."
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _given(parameter["schema"])
        if parameter["in"] == "path":
            text, example = _IDS[parameter["name"]]
            parameter |= {"description": text, "example": example}
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        content["x-max-bytes"] = max_bytes(name, media, settings)
        if media == _JSON:
            content["example"] = examples.BODIES[name]
    for status, response in operation["responses"].items():
        names = [REQUEST_ID, *(["Location"] if name in _LOCATED and status in ("200", "201", "202") else [])]
        names += (
            ["ETag"]
            if name
            in ("read_file", "read_image", "read_export_file", "read_item", "read_manifest", "read_dataset_file")
            else []
        )
        response["headers"] = {header: {"$ref": f"#/components/headers/{header}"} for header in names}


def _given(schema: Schema) -> Schema:
    """What may be given for a parameter, which can be left out but cannot be null."""
    schema.pop("title", None)
    forms = [form for form in schema.get("anyOf", ()) if form != {"type": "null"}]
    if len(forms) != 1:
        return schema
    return {name: value for name, value in (schema | forms[0]).items() if name != "anyOf"}


def _named(node: Any, schemas: dict[str, Schema]) -> Any:
    """The same with every object that has a title moved to `schemas`, so that generated code has a type for it."""
    if isinstance(node, list):
        return [_named(entry, schemas) for entry in node]
    if not isinstance(node, dict):
        return node
    if str(node.get("$ref", "")).startswith("#/$defs/"):
        return {"$ref": _REF + _name(node["$ref"].rpartition("/")[2])}
    for name, schema in node.pop("$defs", {}).items():
        _named({"title": name, "oneOf": [schema]} if "properties" not in schema else schema, schemas)
    node = {key: _named(value, schemas) for key, value in node.items()}
    if isinstance(node.get("title"), str) and ("properties" in node or "oneOf" in node):
        name = _name(node["title"])
        assert schemas.setdefault(name, node) == node, f"two schemas are called {name}"
        return {"$ref": _REF + name}
    return node


def _name(name: str) -> str:
    """The options of an export are also part of an answer, where none is left out."""
    return "OptionsInput" if name == "Options" else name


def _untitle(schema: Schema) -> None:
    """Removes the titles, which repeat names."""
    schema.pop("title", None)
    for child in _children(schema):
        _untitle(child)


def _children(schema: Schema) -> Iterator[Schema]:
    yield from schema.get("properties", {}).values()
    for key in ("anyOf", "oneOf", "allOf"):
        yield from schema.get(key, ())
    for key in ("items", "additionalProperties", "propertyNames", "contentSchema"):
        if isinstance(schema.get(key), dict):
            yield schema[key]


def _description(settings: Settings) -> str:
    text = f"""
    Presswork turns prompts into stored images, in bulk. A job is committed with all its images when it is accepted;
    workers render them, and each image has a link that lasts as long as the image.

    Send `Authorization: Bearer KEY`. A key has scopes among `view`, `submit`, `operate` and `admin`, of which none
    includes another; each operation names the one that it takes, and without it the answer is 403. An error has the
    form of OpenAI's, or that of RFC 9457 for whoever sends `Accept: {PROBLEM}`. Every answer has an `{REQUEST_ID}`,
    which the server's log has too. A wrong parameter is answered 422, and 400 by the routes of the stock `openai`
    client. Every address takes OPTIONS, and HEAD if it takes GET. Send an `Idempotency-Key` where it is listed, and a
    request may be sent again safely.

    Limits of this server:

    - a job: {settings.max_images_per_job:,} images, and {settings.max_images_per_draft:,} sent as a draft in chunks
    - a line: {streaming.LINE_LIMIT:,} bytes; the longest body stands beside each operation, and a longer one is 413
    - a file: {settings.max_lines_per_file:,} lines and {settings.max_file_bytes:,} bytes
    - a page of a list: the maximum of `limit` stands beside each list
    - rates: a tenant may have a limit of requests a second: then each answer says in `RateLimit` how many are left, and
      one too many is answered 429 with Retry-After. Tenants take turns in any case: if {slots.QUEUE} requests of
      a tenant wait for one kind of work, its next one is answered 429 with Retry-After
    - quotas: `GET /v1/usage` shows those of the tenant; what goes over one is 429 with Retry-After
    - `images.generate` waits up to {settings.wait_seconds} seconds
    """
    return re.sub(r"\n +(?=\S)", "\n", text).strip()


def _response(text: str, *headers: str) -> dict[str, Any]:
    content = {_JSON: {"schema": {"$ref": f"{_REF}ErrorBody"}}, PROBLEM: {"schema": {"$ref": f"{_REF}ProblemDetails"}}}
    named = {name: {"$ref": f"#/components/headers/{name}"} for name in (REQUEST_ID, *headers)}
    return {"description": text, "headers": named, "content": content}


_RESPONSES = {
    "Refused": _response("The request is refused: what was wrong, where, and what would do."),
    "TooMany": _response("Too many requests of this tenant, or wrong keys of this address.", "Retry-After"),
    "Failed": _response("Something that is needed is away (503, with Retry-After), or an error of the server."),
}
_FAILURES = {
    status: {"$ref": f"#/components/responses/{name}"}
    for status, name in (("4XX", "Refused"), ("429", "TooMany"), ("5XX", "Failed"))
}
_HEADERS = {
    name: {"description": text, "schema": schema}
    for name, text, schema in (
        (REQUEST_ID, "Names the request; the server's log has it too.", {"type": "string"}),
        ("Retry-After", "How many seconds to wait.", {"type": "integer"}),
        ("Location", "Where to look at what was accepted.", {"type": "string", "format": "uri"}),
        ("ETag", "The sha256 of the bytes, in quotes. With If-None-Match they are not sent again.", {"type": "string"}),
    )
}
_PROBLEM: Schema = {
    "type": "object",
    "description": "An error as RFC 9457 has it. `errors` are a submission's problems.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "errors": {"type": "array", "items": {"$ref": f"{_REF}Problem"}},
        "more": {"type": "boolean"},
    },
}
