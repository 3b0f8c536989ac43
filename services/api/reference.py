"""The OpenAPI document as HTML: operations by tag, each with parameters, body, example and answers; then schemas."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from html import escape
from http import HTTPStatus
from typing import Any

Schema = dict[str, Any]
_RANGES = (("minimum", "maximum", ""), ("minLength", "maxLength", " characters"), ("minItems", "maxItems", " entries"))


def page(document: dict[str, Any], base: str) -> str:
    """`base` is the address in front of `/v1`."""
    info, by_tag = document["info"], _by_tag(document)
    tags = [(tag["name"], tag["description"], by_tag[tag["name"]]) for tag in document["tags"]]
    return "\n".join(
        (
            '<a class="skip" href="#content">Skip to the content</a>',
            f'<nav aria-label="Operations"><p>{_link(base + "/", "Presswork")}</p>',
            *(_menu(name, operations) for name, _, operations in tags),
            '<h2><a href="#schemas">schemas</a></h2></nav>',
            f'<main id="content"><h1>The API of Presswork {escape(info["version"])}</h1>',
            f"<p>At <code>{escape(base)}</code>. For programs: {_link(base + '/openapi.json', 'openapi.json')}.</p>",
            _prose(info["description"]),
            "<p>Every route can answer so, besides what stands beside it:</p>",
            _answers(_shared(document)),
            *(_section(name, text, operations, base) for name, text, operations in tags),
            '<section id="schemas"><h2>schemas</h2>',
            *(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())),
            "</section></main>",
        )
    )


def _by_tag(document: dict[str, Any]) -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    """(method, path, operation) of each tag, in the order of the document."""
    found: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    return found


def _shared(document: dict[str, Any]) -> dict[str, Any]:
    """The answers that operations have in common, by status."""
    operations = (operation for methods in document["paths"].values() for operation in methods.values())
    found = {
        status: _target(one)
        for operation in operations
        for status, one in operation["responses"].items()
        if "$ref" in one
    }
    return {status: document["components"]["responses"][name] for status, name in found.items()}


def _menu(tag: str, operations: list[tuple[str, str, dict[str, Any]]]) -> str:
    links = (f'<li><a href="#{entry["operationId"]}">{escape(entry["summary"])}</a></li>' for _, _, entry in operations)
    return f'<h2><a href="#{tag}">{tag}</a></h2><ul>{"".join(links)}</ul>'


def _section(tag: str, text: str, operations: list[tuple[str, str, dict[str, Any]]], base: str) -> str:
    shown = "\n".join(_operation(method, path, entry, base) for method, path, entry in operations)
    return f'<section id="{tag}"><h2>{tag}</h2>{_prose(text)}{shown}</section>'


def _operation(method: str, path: str, operation: dict[str, Any], base: str) -> str:
    name = operation["operationId"]
    return "\n".join(
        (
            f'<article id="{name}"><h3><a href="#{name}">{escape(operation["summary"])}</a></h3>',
            f'<p class="address"><b>{method}</b> <code>{escape(path).replace("/", "/<wbr>")}</code></p>',
            _prose(operation["description"]),
            _parameters(operation.get("parameters", [])),
            _body(operation.get("requestBody", {})),
            f"<pre>{escape(_curl(method, path, operation, base))}</pre>",
            _answers({status: one for status, one in operation["responses"].items() if "$ref" not in one}),
            "</article>",
        )
    )


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = (
        (_field(entry["name"], _notes(entry)), _kind(entry["schema"]), _words(entry.get("description", "")))
        for entry in parameters
    )
    return _table("Parameter", rows) if parameters else ""


def _notes(parameter: dict[str, Any]) -> str:
    """Where it is sent, unless in the query; one in the path is always required."""
    return "" if parameter["in"] == "query" else f"in the {parameter['in']}"


def _body(body: dict[str, Any]) -> str:
    def shown(media: str, content: dict[str, Any]) -> str:
        schema = content["schema"]
        text = f"<p>Body: <code>{media}</code>, up to {content['x-max-bytes']:,} bytes: {_kind(schema)}"
        return f"{text}</p>{_fields(schema)}" if "properties" in schema else f"{text}{_described(schema)}</p>"

    return "".join(shown(media, content) for media, content in body.get("content", {}).items())


def _described(schema: Schema) -> str:
    return f". {_words(schema['description'])}" if "description" in schema and "contentSchema" not in schema else "."


def _answers(responses: dict[str, Any]) -> str:
    rows = []
    for status, response in sorted(responses.items()):
        schemas = (content.get("schema") for content in response.get("content", {}).values())
        kinds = " or ".join(_kind(schema) for schema in schemas if schema)
        text = response.get("description", "")
        usual = text == "Successful Response" and status.isdigit()
        rows.append((status, kinds, _words(HTTPStatus(int(status)).phrase if usual else text)))
    return _table("Answer", rows)


def _curl(method: str, path: str, operation: dict[str, Any], base: str) -> str:
    """A command that makes the request, with example values."""
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
    parts = [" ".join(["curl", *([] if method == "GET" else [f"-X {method}"]), shlex.quote(base + path)])]
    if operation.get("security"):
        parts.append('-H "Authorization: Bearer $PRESSWORK_API_KEY"')
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        if media == "multipart/form-data":
            fields = content["schema"]["properties"]
            parts += [
                f"-F {name}=@FILE" if field.get("format") == "binary" else f"-F {name}={field.get('enum', ['TEXT'])[0]}"
                for name, field in fields.items() if name in content["schema"]["required"]
            ]  # fmt: skip
        elif "example" in content:
            parts += [f'-H "Content-Type: {media}"', f"-d {shlex.quote(json.dumps(content['example'], indent=2))}"]
        break
    return " \\\n  ".join(parts)


def _schema(name: str, schema: Schema) -> str:
    about = _prose(schema["description"]) if "description" in schema else ""
    inside = _fields(schema) if "properties" in schema else f"<p>{_kind(schema)}</p>"
    return f'<article id="schema-{name}"><h3><a href="#schema-{name}">{name}</a></h3>{about}{inside}</article>'


def _fields(schema: Schema) -> str:
    required = schema.get("required", ())
    rows = (
        (_field(name, "required" if name in required else ""), _kind(field), _words(field.get("description", "")))
        for name, field in schema["properties"].items()
    )
    return _table("Field", rows)


def _field(name: str, notes: str) -> str:
    return f"<code>{escape(name)}</code>{f' <small>{notes}</small>' if notes else ''}"


def _table(first: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """A table whose last column is left out if it would be empty."""
    given = list(rows)
    columns = (first, "Type", "Meaning") if any(meaning for _, _, meaning in given) else (first, "Type")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    cells = ("".join(f"<td>{cell}</td>" for cell in row[: len(columns)]) for row in given)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _kind(schema: Schema) -> str:
    """What a value may be, in a few words."""
    if "$ref" in schema:
        name = _target(schema)
        return f'<a href="#schema-{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_kind(one) for one in schema[key]) + _default(schema)
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values) + _default(schema)
    if "contentSchema" in schema:
        return f"lines, each a {_kind(schema['contentSchema'])}"
    kinds = schema.get("type", "any")
    if kinds == "array":
        return f"list of {_kind(schema.get('items', {}))}{_limits(schema)}"
    if kinds == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}{_limits(schema)}"
    words = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    return f"{words}{_limits(schema)}{_default(schema)}"


def _limits(schema: Schema) -> str:
    found = []
    for low, high, unit in _RANGES:
        least, most = schema.get(low), schema.get(high, schema.get("exclusiveMaximum") if low == "minimum" else None)
        if least is not None and most is not None:
            found.append(f"{least:,} to {most:,}{unit}")
        elif most is not None:
            found.append(f"up to {most:,}{unit}")
        elif least is not None:
            found.append(f"{least:,}{unit} or more")
    return f" ({', '.join(found)})" if found else ""


def _default(schema: Schema) -> str:
    given = schema.get("default")
    return "" if given in (None, {}) else f", else <code>{escape(json.dumps(given))}</code>"


def _link(address: str, text: str) -> str:
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def _target(schema: Schema) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _words(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _prose(text: str) -> str:
    """Paragraphs and lists."""
    return "".join(_blocks(text))


def _blocks(text: str) -> Iterator[str]:
    for block in text.strip().split("\n\n"):
        if block.startswith("- "):
            entries = (f"<li>{_words(' '.join(entry.split()))}</li>" for entry in block[2:].split("\n- "))
            yield f"<ul>{''.join(entries)}</ul>"
        else:
            yield f"<p>{_words(' '.join(block.split()))}</p>"
