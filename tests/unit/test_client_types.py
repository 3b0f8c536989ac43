"""The client's types against the document that the API publishes: the same fields with the same types, both ways."""

import types
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from presswork_client import answers
from services.api.app import create_app
from services.core.settings import Settings

METHODS = {"get", "post", "put", "patch", "delete"}
# Each operation that answers with JSON and the client's type of it; [T] is a page of T.
ANSWERS: dict[str, Any] = {
    "post /v1/jobs": answers.Job,
    "get /v1/jobs": [answers.Job],
    "post /v1/jobs/preview": answers.Preview,
    "post /v1/jobs/estimate": answers.Estimate,
    "put /v1/jobs/{job_id}/chunks/{number}": answers.AppendedChunk,
    "get /v1/jobs/{job_id}/chunks": [answers.Chunk],
    "post /v1/jobs/{job_id}/finalize": answers.Job,
    "patch /v1/jobs/{job_id}": answers.Job,
    "get /v1/jobs/{job_id}": answers.Job,
    "post /v1/jobs/{job_id}/pause": answers.Job,
    "post /v1/jobs/{job_id}/resume": answers.Job,
    "post /v1/jobs/{job_id}/retry": answers.Job,
    "post /v1/jobs/{job_id}/cancel": answers.Job,
    "get /v1/jobs/{job_id}/events": answers.EventPage,
    "get /v1/actions": [answers.Action],
    "get /v1/jobs/actions": [answers.JobsAction],
    "post /v1/jobs/actions": answers.JobsAction,
    "post /v1/jobs/actions/preview": answers.JobsActionPreview,
    "get /v1/jobs/actions/{action_id}": answers.JobsAction,
    "post /v1/jobs/actions/{action_id}/stop": answers.JobsAction,
    "post /v1/sign-in-links": answers.SignInLink,
    "get /v1/fleet/backlog": answers.Backlog,
    "get /v1/lanes": answers.LaneList,
    "get /v1/usage": answers.Usage,
    "delete /v1/tenants/{tenant_id}": answers.TenantDeletion,
    "get /v1/tenants/{tenant_id}/deletion": answers.TenantDeletion,
    "get /v1/retention": answers.RetentionRule,
    "patch /v1/retention": answers.RetentionRule,
    "get /v1/retention/due": answers.RetentionDueList,
    "get /v1/workers": answers.WorkerList,
    "post /v1/workers/{worker_id}/drain": answers.Worker,
    "post /v1/workers/{worker_id}/resume": answers.Worker,
    "get /v1/jobs/{job_id}/requests": [answers.JobRequest],
    "get /v1/jobs/{job_id}/images": [answers.Image],
    "get /v1/jobs/{job_id}/search": [answers.Image],
    "get /v1/images": [answers.ImageOfJob],
    "post /v1/jobs/{job_id}/exports": answers.Export,
    "get /v1/jobs/{job_id}/exports": [answers.Export],
    "get /v1/exports/{export_id}": answers.Export,
    "post /v1/exports/{export_id}/cancel": answers.Export,
    "get /v1/exports/{export_id}/files": [answers.ExportFile],
    "get /v1/datasets": [answers.Dataset],
    "post /v1/datasets": answers.Dataset,
    "get /v1/datasets/{dataset}": answers.Dataset,
    "patch /v1/datasets/{dataset}": answers.Dataset,
    "delete /v1/datasets/{dataset}": answers.DatasetDeleted,
    "post /v1/datasets/{dataset}/sources": answers.Dataset,
    "post /v1/datasets/{dataset}/sources/remove": answers.Dataset,
    "post /v1/datasets/{dataset}/versions": answers.DatasetVersion,
    "get /v1/datasets/{dataset}/versions": [answers.DatasetVersion],
    "get /v1/datasets/{dataset}/versions/{version}": answers.DatasetVersion,
    "delete /v1/datasets/{dataset}/versions/{version}": answers.DatasetVersionDeleted,
    "post /v1/datasets/{dataset}/versions/{version}/cancel": answers.DatasetVersion,
    "get /v1/datasets/{dataset}/versions/{version}/files": [answers.DatasetFile],
    "get /v1/datasets/{dataset}/diff": answers.DatasetComparison,
    "get /v1/jobs/{job_id}/failures": [answers.FailureCause],
    "get /v1/jobs/{job_id}/rates": [answers.JobRatePoint],
    "get /v1/jobs/{job_id}/marks": answers.MarkPage,
    "get /v1/jobs/{job_id}/near-duplicates": answers.AlikePage,
    "get /v1/near-duplicates": answers.AlikePage,
    "put /v1/jobs/{job_id}/marks": answers.MarksChanged,
    "get /v1/policy/terms": [answers.PolicyTerm],
    "post /v1/policy/terms": answers.PolicyTerm,
    "delete /v1/policy/terms/{term_id}": answers.PolicyTermRemoved,
    "post /v1/policy/check": answers.PolicyCheck,
    "get /v1/overview": answers.Overview,
    "get /v1/rates": answers.RateSeries,
    "get /v1/models": [answers.Model],
    "get /v1/schedules": [answers.Schedule],
    "post /v1/schedules": answers.Schedule,
    "get /v1/schedules/{schedule}": answers.Schedule,
    "put /v1/schedules/{schedule}": answers.Schedule,
    "patch /v1/schedules/{schedule}": answers.Schedule,
    "delete /v1/schedules/{schedule}": answers.ScheduleDeleted,
    "post /v1/schedules/{schedule}/run": answers.ScheduleRun,
    "get /v1/schedules/{schedule}/times": answers.ScheduleTimes,
    "get /v1/schedules/{schedule}/runs": [answers.ScheduleRun],
    "post /v1/webhooks": answers.WebhookWithSecret,
    "get /v1/webhooks": [answers.Webhook],
    "get /v1/webhooks/{webhook_id}": answers.Webhook,
    "patch /v1/webhooks/{webhook_id}": answers.Webhook,
    "delete /v1/webhooks/{webhook_id}": answers.WebhookDeleted,
    "get /v1/webhooks/{webhook_id}/secret": answers.WebhookSecret,
    "post /v1/webhooks/{webhook_id}/rotate": answers.WebhookWithSecret,
    "post /v1/webhooks/{webhook_id}/test": answers.WebhookDelivery,
    "get /v1/webhooks/{webhook_id}/deliveries": [answers.WebhookDelivery],
    "get /v1/webhooks/{webhook_id}/deliveries/{delivery_id}": answers.WebhookDeliveryDetails,
    "post /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver": answers.WebhookDelivery,
    "get /v1/webhook-messages": answers.WebhookMessages,
    "get /v1/jobs/{job_id}/deletion": answers.JobDeletion,
    "delete /v1/jobs/{job_id}": answers.JobDeleted,
    "put /v1/catalogues/{catalogue}": answers.Catalogue,
    "get /v1/catalogues": [answers.Catalogue],
    "get /v1/catalogues/{catalogue}": answers.Catalogue,
    "put /v1/catalogues/{catalogue}/file": answers.Catalogue,
    "post /v1/catalogues/{catalogue}/publish": answers.Catalogue,
    "post /v1/catalogues/{catalogue}/runs": answers.CatalogueRun,
    "get /v1/catalogues/{catalogue}/runs": [answers.CatalogueRun],
    "get /v1/catalogues/{catalogue}/runs/{run_id}": answers.CatalogueRun,
    "post /v1/catalogues/{catalogue}/runs/{run_id}/cancel": answers.CatalogueRun,
    "post /v1/catalogues/{catalogue}/runs/{run_id}/redraw": answers.Job,
    "get /v1/catalogues/{catalogue}/runs/{run_id}/estimate": answers.Estimate,
    "get /v1/catalogues/{catalogue}/runs/{run_id}/changes": [answers.CatalogueChange],
    "get /v1/catalogues/{catalogue}/versions": [answers.CatalogueVersion],
    "get /v1/catalogues/{catalogue}/diff": [answers.CatalogueDifference],
    "get /v1/catalogues/{catalogue}/items": [answers.CatalogueItem],
    "get /v1/files/{file_id}": answers.File,
    "delete /v1/files/{file_id}": answers.FileDeleted,
}
# What the client need have no method for: the stock client's own routes, keys, the dashboard's views, and what answers
# for machines.
ELSEWHERE = (
    "/v1/files", "/v1/uploads", "/v1/batches", "/v1/images/", "/v1/models/", "/v1/keys", "/v1/tenants", "/v1/views",
    "/livez",    "/readyz", "/metrics",
)  # fmt: skip
# Where the two differ on purpose: the API's type, the client's, and why.
DIFFERENCES = {
    "Schedule.target": ("object", "{}", "the document names no fields; it is what was asked for"),
    "Preview.first[]": (
        "object",
        "ImageRequest",
        "the document names no fields; these are requests as one submits them",
    ),
    "Catalogue.definition": ("object", "{}", "the document names no fields; it is as it was put"),
    "WebhookDeliveryDetails.message": ("object", "{}", "the document names no fields; each type has its own"),
    "Dataset.definition": ("object", "{}", "the document names no fields; it is as it was put"),
    "Matrix.vary{}[]": ("number | string", "any", "a checker would refuse a list of ints as a list of numbers"),
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    away = {"DATABASE_URL": "postgresql://127.0.0.1:1/away", "REDIS_URL": "redis://127.0.0.1:1/0"}
    store = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    found: dict[str, Any] = create_app(Settings.read(away | store | {"PRESSWORK_SECRET": "x" * 32})).openapi()
    return found


def differences(schema: Any, kind: Any, place: str, document: dict[str, Any], *, sent: bool = False) -> list[str]:
    """Where a schema and a type of the client are not the same; `sent`: a request's, whose fields may be left out."""
    api, client = shape(resolved(schema, document)), documented_body(kind)
    if place in DIFFERENCES:
        expected, ours, _ = DIFFERENCES[place]
        return [] if (api, client) == (expected, ours) else [f"{place}: {api} and {client}, no longer as listed"]
    if client == "[]" == api:
        return differences(resolved(schema, document)["items"], get_args(kind)[0], f"{place}[]", document, sent=sent)
    if client == "{}" == api:
        values = resolved(schema, document)["additionalProperties"]
        return differences(values, get_args(kind)[1], f"{place}{{}}", document, sent=sent)
    if is_typeddict(bare(kind)) and api == "object":
        return of_fields(resolved(schema, document), bare(kind), document, sent=sent)
    nullable = without_null(resolved(schema, document)), without_none(kind)
    if None not in nullable:
        return differences(*nullable, place, document, sent=sent)
    return [] if api == client else [f"{place}: the API says {api}, the client {client}"]


def of_fields(schema: dict[str, Any], kind: Any, document: dict[str, Any], *, sent: bool) -> list[str]:
    name, properties, hints = kind.__name__, schema["properties"], get_type_hints(kind, include_extras=True)
    found = [f"{name}.{field}: only the API has it" for field in properties.keys() - hints.keys()]
    found += [f"{name}.{field}: only the client has it" for field in hints.keys() - properties.keys()]
    for field in properties.keys() & hints.keys():
        may_be_left_out = sent and field not in schema.get("required", [])
        if (field in kind.__optional_keys__) != may_be_left_out:
            found.append(f"{name}.{field}: the API {'may' if may_be_left_out else 'does not'} leave it out")
        found += differences(properties[field], bare(hints[field]), f"{name}.{field}", document, sent=sent)
    return found


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def shape(schema: dict[str, Any]) -> str:
    """A JSON schema in the words of `described`."""
    if "const" in schema or "enum" in schema:
        return " | ".join(sorted(map(repr, schema.get("enum", [schema.get("const")]))))
    if "anyOf" in schema:
        return " | ".join(sorted("object" if "$ref" in one else shape(one) for one in schema["anyOf"]))
    if isinstance(schema["type"], list):
        return " | ".join(sorted(schema["type"]))
    if schema["type"] == "object" and isinstance(schema.get("additionalProperties"), dict):
        return "{}"
    return "[]" if schema["type"] == "array" else str(schema["type"])


def documented_body(kind: Any) -> str:
    """A type of the client, one level of it."""
    kind = bare(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(sorted("object" if is_typeddict(one) else documented_body(one) for one in get_args(kind)))
    if get_origin(kind) is Literal:
        return " | ".join(sorted(map(repr, get_args(kind))))
    if get_origin(kind) in (list, dict):
        return "[]" if get_origin(kind) is list else "{}"
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any"}
    return names.get(kind) or str(kind.__name__)


def bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) in (Required, NotRequired) else kind


def without_null(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The one other thing that a nullable schema may be."""
    others = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    return others[0] if len(others) == 1 else None


def without_none(kind: Any) -> Any:
    union = get_origin(kind) in (Union, types.UnionType)
    others = [one for one in get_args(kind) if one is not type(None)] if union else []
    return others[0] if len(others) == 1 else None


def reached(kind: Any) -> set[str]:
    """The names of all types of the client that a type is made of."""
    kind = bare(kind)
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True).values()
        return {kind.__name__}.union(*map(reached, hints))
    return set().union(*map(reached, get_args(kind)))


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The schemas of what each operation answers with when it succeeds, by the operation."""
    return {
        f"{method} {path}": {
            status: answer["content"]["application/json"]["schema"]
            for status, answer in operation["responses"].items()
            if status.startswith("2") and "application/json" in answer.get("content", {})
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    }


@pytest.mark.parametrize("operation", ANSWERS)
def test_the_clients_type_of_an_answer_is_the_documents(document: dict[str, Any], operation: str) -> None:
    kind = ANSWERS[operation]
    schemas = operations(document)[operation]
    assert schemas
    for schema in schemas.values():
        if isinstance(kind, list):
            [item] = kind
            data = resolved(schema, document)["properties"]["data"]
            assert sorted(differences(data, list[item], item.__name__, document)) == []
        else:
            assert sorted(differences(schema, kind, kind.__name__, document)) == []


def test_the_clients_types_of_requests_are_the_documents(document: dict[str, Any]) -> None:
    for kind in (answers.ImageRequest, answers.Matrix):
        schema = document["components"]["schemas"][kind.__name__]
        assert sorted(differences(schema, kind, kind.__name__, document, sent=True)) == []


def test_every_operation_that_answers_with_json_has_a_type_or_is_elsewhere(document: dict[str, Any]) -> None:
    known = {name for name, schemas in operations(document).items() if schemas}
    rest = {name for name in known if not name.split()[1].startswith(ELSEWHERE)}
    assert rest <= set(ANSWERS) <= known


def test_every_type_of_the_client_is_one_that_is_compared() -> None:
    compared = set().union(*(reached(kind[0] if isinstance(kind, list) else kind) for kind in ANSWERS.values()))
    compared |= reached(answers.ImageRequest) | reached(answers.Matrix)
    assert compared == {name for name, kind in vars(answers).items() if is_typeddict(kind)}
