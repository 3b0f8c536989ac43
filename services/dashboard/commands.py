"""A submission as it is written for curl, the command and Python; and a list of jobs, for the command."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from services.dashboard.asked import Asked

_OPTIONS = {"num_inference_steps": "--steps", "guidance_scale": "--guidance", "n": "--n"}


def ls(kept: Mapping[str, str]) -> str:
    """The list that is asked for in these words (`jobs/job_query.py`)."""
    words = {"q": "text", "who": "submitted-by"}
    label = {"label": kept["label"].replace(":", "=", 1)} if "label" in kept else {}
    given = (f"--{words.get(name, name)} {shlex.quote(value)}" for name, value in {**kept, **label}.items())
    return " ".join(["presswork ls", *given])


def same(base: str, asked: Asked, file: str) -> list[tuple[str, str]]:
    """By name. `file` is the name of the file that was chosen."""
    file = f"./{file}" if file.startswith(("-", "~")) else file  # no option, no stdin
    return [
        ("curl", _curl(base, asked, file)),
        ("The command", _command(asked, file)),
        ("Python", _python(base, asked, file)),
    ]


def _curl(base: str, asked: Asked, file: str) -> str:
    key = '-H "Authorization: Bearer $PRESSWORK_API_KEY"'
    if asked.kind == "file":
        query = "".join(f"&{name}={_query(value)}" for name, value in asked.options.items() if name != "labels")
        address = shlex.quote(f"{base}/v1/jobs{query.replace('&', '?', 1)}")
        line = f"curl -s {address} {key} \\\n  -H 'Content-Type: application/x-ndjson' \\\n  --data-binary"
        return f"# one request a line; labels, defaults and tables: the command\n{line} {shlex.quote('@' + file)}"
    body = shlex.quote(json.dumps(asked.body, ensure_ascii=False))
    return f"curl -s {base}/v1/jobs {key} \\\n  -H 'Content-Type: application/json' \\\n  -d {body}"


def _command(asked: Asked, file: str) -> str:
    if asked.kind == "prompt":
        line = shlex.quote(json.dumps({"prompt": asked.prompt}, ensure_ascii=False))
        words = [f"printf '%s\\n' {line} | presswork submit -"]
    elif asked.matrix is not None:
        words = [f"presswork submit --matrix {shlex.quote(str(asked.matrix['template']))}"]
        for name, values in asked.matrix["vary"].items():
            words.append(f"--vary {shlex.quote(f'{name}=' + ','.join(map(_cell, values)))}")
        words += ["--combine zip"] if asked.matrix.get("combine") else []
    else:
        words = [f"presswork submit {shlex.quote(file)}"]
        words += [f"--column {shlex.quote(f'{name}={column}')}" for name, column in (asked.columns or {}).items()]
        words += [
            f"--{name} {shlex.quote(value)}" for name in ("delimiter", "encoding") if (value := getattr(asked, name))
        ]
    for name, value in asked.fields.items():
        words.append(f"{_OPTIONS.get(name, '--' + name.replace('_', '-'))} {shlex.quote(str(value))}")
    for name, value in asked.options.items():
        if name == "labels":
            words += [f"--label {shlex.quote(f'{label}={text}')}" for label, text in value.items()]
        else:
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}"))
    return " \\\n  ".join([*words, "--watch"])


def _python(base: str, asked: Asked, file: str) -> str:
    opened = (
        "import os\n\nfrom presswork_client import Client\n\n"
        f'with Client({base!r}, os.environ["PRESSWORK_API_KEY"]) as client:\n    '
    )
    if asked.kind == "file":
        priority = f", priority={asked.options['priority']!r}" if "priority" in asked.options else ""
        return f"{opened}client.submit_file({file!r}{priority})  # JSON lines"
    body = dict(asked.body)
    first = body.pop("matrix") if asked.matrix is not None else body.pop("images")
    verb = "submit_matrix" if asked.matrix is not None else "submit"
    return f"{opened}job = client.{verb}({first!r}{_arguments(body)})"


def _arguments(given: dict[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in given.items())


def _cell(value: object) -> str:
    """The value as in CSV."""
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') or text != text.strip() else text


def _query(value: object) -> str:
    return "true" if value is True else str(value)
