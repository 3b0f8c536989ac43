"""The OpenAPI document reads well: in generated clients, and as a page."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from services.api import document as documents
from services.api import reference, scopes
from services.api.app import create_app
from services.core.settings import Settings

SETTINGS = {
    "DATABASE_URL": "postgresql://127.0.0.1:1/away", "REDIS_URL": "redis://127.0.0.1:1/0", "PRESSWORK_SECRET": "x" * 32,
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    "PRESSWORK_MAX_FILE_BYTES": "123456789",
}  # fmt: skip
VOID = {"meta", "link", "wbr", "br"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings.read(SETTINGS)).openapi()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_operations_are_named_by_what_they_do_and_belong_to_one_tag(document):
    found = operations(document)
    names = [operation["operationId"] for operation in found.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) and "v1" not in name for name in names)
    for place, operation in found.items():
        assert len(operation["tags"]) == 1 and operation["tags"][0] in documents.TAGS, place
        assert operation["description"] and operation["summary"], place
        assert all(parameter["description"] for parameter in operation.get("parameters", [])), place
    assert [tag["name"] for tag in document["tags"]] == list(documents.TAGS)


ADMIN = {"PATCH /v1/retention", "GET /v1/audit"}


def test_every_operation_declares_the_scope_that_its_key_needs(document):
    found = {operation["operationId"]: (place, operation) for place, operation in operations(document).items()}
    keyed = {name for name, (place, _) in found.items() if " /v1/" in place}
    assert set(scopes.NEEDED) == keyed
    for name, scope in scopes.NEEDED.items():
        place, operation = found[name]
        assert operation["security"] == [{"HTTPBearer": [scope.value]}], place
        assert f"the scope `{scope.value}`" in operation["description"], place
        expected = {"view"} if place.startswith("GET ") or " /v1/sign-in-links" in place else {"submit", "operate"}
        is_admins = any(f" /v1/{part}" in place for part in ("keys", "tenants", "policy")) or place in ADMIN
        is_admins = is_admins or "/license/" in place or place.endswith(("/secret", "/rotate"))
        assert scope.value in ({"admin"} if is_admins else expected), place
    assert all("security" not in found[name][1] for name in found.keys() - keyed)


def test_every_schema_has_one_short_name_and_every_reference_leads_to_it(document):
    schemas = document["components"]["schemas"]
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", name) for name in schemas)
    for target in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        place = document
        for step in target.removeprefix("#/").split("/"):
            place = place[step]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for place, operation in operations(document).items():
        content = operation.get("requestBody", {}).get("content", {})
        inline = [media for media, given in content.items() if "properties" in given["schema"]]
        assert inline in ([], ["multipart/form-data"]), place


def test_every_body_forbids_fields_that_it_does_not_name(document):
    """Bodies in JSON and lines, with all that stands in them; so state, tenant and attempts cannot be set."""
    schemas, seen, loose = document["components"]["schemas"], set(), []

    def walk(node: Any, place: str) -> None:
        if isinstance(node, list):
            for entry in node:
                walk(entry, place)
        elif isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in seen:
                seen.add(name)
                walk(schemas[name], name)
            if "properties" in node and node.get("additionalProperties") is not False:
                loose.append(place)
            for key, child in node.items():
                walk(child if key != "example" else None, place)

    for place, operation in operations(document).items():
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            if media != "multipart/form-data":
                walk(content["schema"], place)
    assert len(seen) > 50 and loose == []


def test_every_body_has_its_limit_and_an_example_that_fits(document):
    for place, operation in operations(document).items():
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            assert content["x-max-bytes"] >= 64 << 10, place
            if media == "application/json":
                schema = content["schema"] | {"components": document["components"]}
                jsonschema.Draft202012Validator(schema).validate(content["example"])
    limits = operations(document)["POST /v1/files"]["requestBody"]["content"]["multipart/form-data"]
    assert limits["x-max-bytes"] > 123_456_789
    assert "123,456,789 bytes" in document["info"]["description"]


def test_every_answer_is_said_to_have_a_request_id_and_those_of_accepted_work_a_location(document):
    for place, operation in operations(document).items():
        for status, given in operation["responses"].items():
            response = given
            if "$ref" in given:
                response = document["components"]["responses"][given["$ref"].rpartition("/")[2]]
            assert "X-Request-Id" in response["headers"], (place, status)
            accepted = status == "202" and not place.startswith("DELETE")
            assert ("Location" in response["headers"]) or not accepted, place


class Page(HTMLParser):
    """What is open, the ids, and where links lead. Raises AssertionError for a page that is not well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open += [] if tag in VOID else [tag]
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []
        self.links += [value for name in ("href", "src") if (value := given.get(name))]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (self.open, tag)


def test_the_page_shows_every_operation_and_schema_and_its_links_lead_there(document):
    page = Page(reference.page(document, "https://pictures.example/api"))
    assert len(set(page.ids)) == len(page.ids)
    shown = {operation["operationId"] for operation in operations(document).values()}
    assert shown | {f"schema-{name}" for name in document["components"]["schemas"]} <= set(page.ids)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert link.startswith("https://pictures.example/api/")
    assert page.tags["script"] == page.tags["style"] == 0


def test_whatever_the_document_says_is_text_on_the_page(document):
    evil = json.loads(json.dumps(document).replace("Submits a job", "<script>`<b>`</script>"))
    text = reference.page(evil, 'http://x/"><script>')
    assert Page(text).tags["script"] == 0
    assert "&lt;script&gt;<code>&lt;b&gt;</code>&lt;/script&gt;" in text
