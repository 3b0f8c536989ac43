"""Images and jobs asked for again, by curl, the command and Python: texts to copy, and a job's requests as a file."""

import json
import shlex
from typing import Any

from services.core.jobs.queries import JobView
from services.core.jobs.resubmission import Rendered
from services.core.model import ids
from services.dashboard.reading import PRIORITIES

_CURL = 'curl -s {url} -H "Authorization: Bearer $PRESSWORK_API_KEY" \\\n  -H "Content-Type: {kind}" \\\n  {body}'
_PYTHON = """{imports}
from presswork_client import Client

with Client({base!r}, os.environ["PRESSWORK_API_KEY"]) as client:
    {call}"""
Ways = list[tuple[str, str]]


def of_image(base: str, rendered: Rendered, index: int) -> Ways:
    """A name and a text to copy, of each way to ask for the image again."""
    asked = rendered.request(index)
    line = shlex.quote(json.dumps(asked, ensure_ascii=False))
    body = f"-d {shlex.quote(json.dumps({'images': [asked]}, ensure_ascii=False))}"
    return [
        ("curl", _CURL.format(url=f"{base}/v1/jobs", kind="application/json", body=body)),
        ("The command", f"printf '%s\\n' {line} > again.jsonl\npresswork submit again.jsonl --watch"),
        ("Python", _PYTHON.format(imports="import os\n", base=base, call=f"client.submit([{asked!r}])")),
    ]


def of_job(base: str, job: JobView) -> Ways:
    """The same for a job whose requests were saved as `file_name(job.id)`."""
    file, priority = file_name(job.id), PRIORITIES[job.priority]
    head: dict[str, Any] = {} if priority == "normal" else {"priority": priority}
    head |= {name: True for name in ("dedupe", "embed_prompt") if getattr(job, name)}
    head |= {"store": "shards"} if job.in_shards else {}
    query = "&".join(f"{name}={str(value).lower()}" for name, value in head.items())
    url = f"{base}/v1/jobs" + (f"?{query}" if query else "")
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in head.items()]
    flags += [f"--label {shlex.quote(f'{name}={value}')}" for name, value in job.labels.items()]
    call = f"client.submit(map(json.loads, file){''.join(f', {n}={v!r}' for n, v in _with_labels(head, job).items())})"
    python = _PYTHON.format(
        imports="import json\nimport os\n", base=base, call=f"with open({file!r}) as file:\n        {call}"
    )
    return [
        ("curl", _CURL.format(url=shlex.quote(url), kind="application/x-ndjson", body=f"--data-binary @{file}")),
        ("The command", " ".join(["presswork submit", file, *flags, "--watch"])),
        ("Python", python),
    ]


def file_name(job_id: int) -> str:
    return f"{ids.public_job(job_id)}.jsonl"


def lines(requests: list[Rendered]) -> bytes:
    """The requests, one a line."""
    return "".join(json.dumps(one.request(), ensure_ascii=False) + "\n" for one in requests).encode()


def _with_labels(head: dict[str, Any], job: JobView) -> dict[str, Any]:
    return head | ({"labels": job.labels} if job.labels else {})
