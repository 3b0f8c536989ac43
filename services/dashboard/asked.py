"""What the form of a submission asks for, as the body of POST /v1/jobs. The core checks what the fields hold."""

from dataclasses import dataclass
from typing import Any

from services.core.items import cells, matrices
from services.core.items.errors import WrongOption
from services.core.model import requests
from services.core.model.errors import InvalidSubmission, Problem
from services.dashboard.forms import Form

KINDS = {"prompt": "A prompt", "template": "A template", "file": "A file"}
FIELDS = (
    "model",
    "size",
    "num_inference_steps",
    "guidance_scale",
    "n",
    "seed",
    "negative_prompt",
    "output_format",
    "output_compression",
    "image",
    "strength",
    "reproducibility_class",
)
READING = ("columns", "delimiter", "encoding")


@dataclass(frozen=True, slots=True)
class Asked:
    """`fields` are those of a request, `options` those of the job; both hold only what was filled in."""

    kind: str
    fields: dict[str, Any]
    options: dict[str, Any]
    prompt: str = ""
    matrix: dict[str, Any] | None = None
    columns: dict[str, str] | None = None
    delimiter: str | None = None
    encoding: str | None = None

    @property
    def pictures(self) -> list[str]:
        """What is to be redrawn, by name."""
        varied = (self.matrix or {}).get("vary", {}).get("image", [])
        named = [self.fields.get("image"), *varied]
        return [name for name in named if isinstance(name, str) and requests.is_picture_id(name)]

    @property
    def body(self) -> dict[str, Any]:
        """Of POST /v1/jobs; a file's requests are not in it."""
        if self.kind == "prompt":
            return {"images": [{"prompt": self.prompt, **self.fields}], **self.options}
        found: dict[str, Any] = {} if self.matrix is None else {"matrix": self.matrix}
        return found | ({"defaults": self.fields} if self.fields else {}) | self.options


def read(form: Form) -> Asked:
    """Raises InvalidSubmission: a list in the form cannot be divided, or there is no such kind of form."""
    kind = form.get("kind", "")
    if kind not in KINDS:
        raise InvalidSubmission([Problem("invalid_value", "The form does not say what it submits.", "kind")])
    fields = {name: cells.parsed(name, form[name]) for name in FIELDS if form.get(name, "").strip()}
    options: dict[str, Any] = {name: True for name in ("dedupe", "embed_prompt") if form.get(name) == "true"}
    if form.get("in_shards") == "true":
        options["store"] = "shards"
    if form.get("priority", "normal") != "normal":
        options["priority"] = form["priority"]
    if form.get("labels", "").strip():
        options["labels"] = _pairs(form["labels"], "Labels", "name=spring, for=shop")
    if kind == "prompt":
        return Asked(kind, fields, options, prompt=form.get("prompt", ""))
    if kind == "template":
        return Asked(kind, fields, options, matrix=_matrix(form))
    return Asked(
        kind,
        fields,
        options,
        columns=_pairs(form.get("columns", ""), "Columns", "prompt=caption, custom_id=sku"),
        delimiter=form.get("delimiter", "").strip() or None,
        encoding=form.get("encoding", "").strip() or None,
    )


def _matrix(form: Form) -> dict[str, Any]:
    lists: dict[str, list[object]] = {}
    for number, line in enumerate(form.get("vary", "").splitlines(), 1):
        if not line.strip():
            continue
        name, sign, text = line.partition("=" if "=" in line.partition(":")[0] else ":")
        if not sign or not name.strip():
            _refuse(f"Line {number} of what varies is no list: write NAME = A, B, such as colour = red, teal.", "vary")
        if name.strip() in lists:
            _refuse(f"Line {number} of what varies gives {name.strip()[:64]} again.", "vary")
        lists[name.strip()] = _values(name.strip(), text.strip(), "vary")
    found: dict[str, Any] = {"template": form.get("template", ""), "vary": lists}
    return found | ({"combine": "zip"} if form.get("combine") == "zip" else {})


def _pairs(text: str, what: str, example: str) -> dict[str, str]:
    """NAME=VALUE, NAME=VALUE; a pair in quotes may hold a comma."""
    found: dict[str, str] = {}
    if not text.strip():
        return found
    for word in _values(what, text, what.lower()):
        name, sign, value = str(word).strip().partition("=")
        if not sign or not name:
            _refuse(f"{what} holds {str(word)[:80]!r}; it must be NAME=VALUE pairs, such as {example}.", what.lower())
        if name in found:
            _refuse(f"{what} gives {name[:64]} twice.", what.lower())
        found[name] = value
    return found


def _values(name: str, text: str, field: str) -> list[object]:
    try:
        return matrices.values(name, text)
    except WrongOption as error:
        raise InvalidSubmission([Problem("invalid_value", str(error), field)]) from None


def _refuse(message: str, field: str) -> None:
    raise InvalidSubmission([Problem("invalid_value", message, field)])
