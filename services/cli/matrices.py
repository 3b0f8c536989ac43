"""A matrix of combinations: from a template and lists on the command line, or from a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from presswork_client import Client, ClientError, Job, Matrix, Preview
from services.cli import show, units
from services.cli.exits import BadInput, Usage
from services.core.items import matrices, recipe_values
from services.core.items.errors import WrongOption
from services.core.model import strict_json

_LARGEST = 64 << 20  # bytes of a file of values


def read(given: str, vary: Mapping[str, str], combine: str | None, repeat: int | None) -> Matrix:
    """`given` is a template, or the name of a .json file with a matrix. Options replace fields of the file.

    Raises Usage; BadInput if the file is not a matrix.
    """
    found: Any = {"template": given}
    if given.lower().endswith(".json"):
        try:
            found = strict_json.loads(Path(given).read_bytes().removeprefix(strict_json.BYTE_ORDER_MARK))
        except strict_json.BadJson as error:
            raise BadInput(f"{given}: {error}", []) from None
        if not isinstance(found, dict):
            raise BadInput(
                f'{given} is {strict_json.describe(found)}; it must be an object: {{"template", "vary"}}.', []
            )
        found = found.get("matrix", found)
    if not isinstance(found, dict) or not isinstance(found.get("vary", {}), dict):
        raise BadInput(f'{given}: "vary" must be an object of lists, one for each name.', [])
    lists = {name: _values(name, text) for name, text in vary.items()}
    whole: Any = {**found, "vary": {**found.get("vary", {}), **lists}}
    if not whole["vary"]:
        raise Usage("Nothing varies: --vary NAME=A,B lists the values of a name in the template.")
    whole |= {name: value for name, value in (("combine", combine), ("repeat", repeat)) if value is not None}
    made: Matrix = whole
    return made


def send(
    client: Client, matrix: Matrix, defaults: Mapping[str, Any], head: Mapping[str, Any], key: str | None, quiet: bool
) -> Job:
    """Shows a preview, unless quiet, and submits the matrix."""
    given = ({"defaults": dict(defaults)} if defaults else {}) | dict(head)
    try:
        if not quiet:
            show_preview(client.preview(matrix, **given))
        return client.submit_matrix(matrix, idempotency_key=key, **given)
    except ClientError as error:
        if not error.errors:
            raise
        raise BadInput(
            "refused; nothing was submitted.", [{**entry, "index": None} for entry in error.errors]
        ) from None


def show_preview(preview: Preview) -> None:
    """Prints the numbers of requests and images and the first requests, on stderr."""
    show.say(f"{preview['requests']:,} combinations, {preview['images']:,} images; the first:")
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column("PROMPT", overflow="fold")
    table.add_column("WITH", overflow="fold", style="dim")
    for request in preview["first"]:
        others = {name: value for name, value in request.items() if name != "prompt"}
        words = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in others.items())
        table.add_row(Text(request["prompt"]), Text(words))
    show.err().print(table)


def file_of_values(path: str | Path) -> str:
    """The text of a file of values. Raises BadInput."""
    content = Path(path).read_bytes()
    if len(content) > _LARGEST:
        raise BadInput(f"{path} has {units.size(len(content))}; a file of values may have {units.size(_LARGEST)}.", [])
    try:
        return content.removeprefix(strict_json.BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8: byte {error.start} is invalid.", []) from None


def _values(name: str, text: str) -> list[object]:
    if text.startswith("@"):
        found = recipe_values.of_lines(name, file_of_values(text[1:]))
        if found.weights is not None:
            raise Usage(f"{text[1:]} has weights, which `presswork prompts --sample` takes; a matrix has none.")
        return list(found.values)
    try:
        return matrices.values(name, text)
    except WrongOption as error:
        raise Usage(f"--vary {error}") from None
