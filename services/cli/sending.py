"""Sends requests: few in one submission, many as a draft in chunks, which can be resumed."""

import json
import re
import shlex
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from rich.progress import Progress, TaskID

from presswork_client import Chunk as Stored
from presswork_client import Client, ClientError, Job
from services.cli import follow, show
from services.cli.exits import BadInput, Interrupted
from services.cli.reading import Row, Source
from services.core.model import strict_json
from services.core.model.errors import PressworkError

CHUNK_REQUESTS = 50_000
CHUNK_BYTES = 64 << 20
_FIRST = re.compile(r"was used at (line|index) ([\d,]+) already")
_JSON_BYTES = 24 << 20  # below the server's limit for a JSON body


@dataclass
class Part:
    """Some requests, one a line, and their places in the source."""

    number: int
    body: bytearray = field(default_factory=bytearray)
    places: "array[int]" = field(default_factory=lambda: array("Q"))

    def take(self, row: Row) -> None:
        self.body += row.line
        self.body += b"\n"
        self.places.append(row.place)


def parts(rows: Iterable[Row], max_requests: int) -> Iterator[Part]:
    """Splits rows into parts. The same rows always give the same parts, so that a draft can be resumed."""
    part = Part(0)
    for row in rows:
        if part.places and (len(part.places) >= max_requests or len(part.body) + len(row.line) >= CHUNK_BYTES):
            yield part
            part = Part(part.number + 1)
        part.take(row)
    if part.places:
        yield part


def send(client: Client, source: Source, head: Mapping[str, Any], max_requests: int, key: str | None) -> Job:
    """Submits the source's requests. Up to two parts are sent as one submission, more as a draft.

    Raises:
        BadInput: the server refused it. Each problem has its place in the source.
        Interrupted: Ctrl-C was pressed. The message has the command that resumes.
    """
    coming = parts(source.rows(), max_requests)
    first = list(islice(coming, 3))
    if not first:
        raise BadInput(f"{source.name} holds no requests.", [])
    if len(first) < 3 and sum(len(part.body) for part in first) <= CHUNK_BYTES:
        return _send_whole(client, source, first, head, key)
    draft = client.create_draft(idempotency_key=key, **head)
    show.say(
        f"{draft['id']} takes the requests in parts; if that is interrupted, resume with:\n  {_again(draft['id'])}"
    )
    return _send_parts(client, source, draft["id"], chain(first, coming), {})


def go_on(client: Client, source: Source, job_id: str, max_requests: int) -> Job:
    """Sends the missing parts of a draft and finalizes it."""
    job = client.job(job_id)
    if job["status"] != "draft":
        show.say(f"{job_id} is not a draft any more: all of it has been submitted")
        return job
    there = {chunk["number"]: chunk for chunk in client.chunks(job_id)}
    show.say(f"{job_id} has {_parts(len(there))}, {sum(c['requests'] for c in there.values()):,} requests", style="dim")
    return _send_parts(client, source, job_id, parts(source.rows(), max_requests), there)


def _send_whole(client: Client, source: Source, first: list[Part], head: Mapping[str, Any], key: str | None) -> Job:
    body = b"".join(part.body for part in first)
    places = list(chain.from_iterable(part.places for part in first))
    priority = head.get("priority")
    try:
        if not head.keys() - {"priority"}:
            return client.submit_body(body, "application/x-ndjson", priority=priority, idempotency_key=key)
        if len(body) > _JSON_BYTES or len(places) > CHUNK_REQUESTS:
            draft = client.create_draft(idempotency_key=key, **head)
            return _send_parts(client, source, draft["id"], first, {})
        return client.submit_body(_json(source, body, places, head), "application/json", idempotency_key=key)
    except ClientError as error:
        raise _placed(error, source, places) from None
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped while it was being submitted: either all of it was recorded or nothing; `presswork ls` shows which"
        ) from None


def _json(source: Source, body: bytes, places: list[int], head: Mapping[str, Any]) -> bytes:
    """The lines as one JSON body with the job's options. Raises BadInput for lines that are not JSON."""
    lines = body.removesuffix(b"\n").split(b"\n")
    wrong = []
    for place, line in zip(places, lines, strict=True):
        try:
            strict_json.loads(line)
        except strict_json.BadJson as error:
            wrong.append({source.unit: place, "param": None, "code": error.code, "message": str(error)})
    if wrong:
        raise BadInput(f"{len(wrong):,} of {len(lines):,} requests cannot be read; nothing was submitted.", wrong[:100])
    return json.dumps(head).encode()[:-1] + b',"images":[' + b",".join(lines) + b"]}"


def _send_parts(
    client: Client, source: Source, job_id: str, coming: Iterable[Part], there: Mapping[int, Stored]
) -> Job:
    sent = requests = images = 0
    try:
        with follow.bar() as progress:
            task = progress.add_task("submitting", total=None, tail="")
            for part in coming:
                stored = there[part.number] if _is_there(part, there) else _put(client, source, job_id, part)
                sent, requests, images = sent + 1, requests + stored["requests"], images + stored["images"]
                _advance(progress, task, source, requests)
        try:
            return client.finalize(job_id, sent, images)
        except ClientError as error:
            if not error.errors:
                raise
            places = [{"chunk": entry.get("chunk"), **_placeless(entry)} for entry in error.errors]
            raise BadInput(f"{_summary(error)}, across the parts of {job_id}.", places) from None
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what has arrived is kept ({_parts(sent)}); resume with:\n  {_again(job_id)}"
        ) from None
    except (ClientError, PressworkError):
        if not isinstance(sys.exception(), BadInput):
            show.say(f"what has arrived is kept ({_parts(sent)}); resume with:\n  {_again(job_id)}")
        raise


def _put(client: Client, source: Source, job_id: str, part: Part) -> Stored:
    try:
        return client.put_chunk(job_id, part.number, bytes(part.body))
    except ClientError as error:
        if error.code == "chunk_conflict":
            hint = f"{source.name} has changed since part {part.number} was sent; submit it as a new job."
            raise BadInput(error.message, [], hint=hint) from None
        if not error.errors:
            raise
        raise _kept(error, _at(error, source, part.places), job_id) from None


def _is_there(part: Part, there: Mapping[int, Stored]) -> bool:
    """Whether the server has the part. The last one it has is sent again, to find out if the input has changed."""
    stored = there.get(part.number)
    return stored is not None and stored["requests"] == len(part.places) and part.number != max(there)


def _advance(progress: Progress, task: TaskID, source: Source, requests: int) -> None:
    seconds = progress.tasks[0].elapsed
    tail = "requests" + (f", {requests / seconds:,.0f} a second" if seconds else "")
    progress.update(task, completed=requests, total=source.total, tail=tail)


def _placed(error: ClientError, source: Source, places: list[int]) -> Exception:
    """The server's refusal, with the places in the source."""
    if not error.errors:
        return error
    return BadInput(f"{_summary(error)}; nothing was submitted.", _at(error, source, places))


def _kept(error: ClientError, problems: list[dict[str, Any]], job_id: str) -> BadInput:
    return BadInput(f"{_summary(error)}.", problems, hint=f"Correct that and resume with:\n  {_again(job_id)}")


def _summary(error: ClientError) -> str:
    count = len(error.errors)
    return f"refused: {'a problem was' if count == 1 else f'{count} problems were'} found"


def _parts(count: int) -> str:
    return "1 part" if count == 1 else f"{count:,} parts"


def _at(error: ClientError, source: Source, places: "list[int] | array[int]") -> list[dict[str, Any]]:
    found = []
    for entry in error.errors:
        line, index = entry.get("line"), entry.get("index")
        at = line - 1 if line is not None else index
        place = places[at] if at is not None and 0 <= at < len(places) else None
        rest = _placeless(entry)
        if entry["code"] == "duplicate_custom_id":
            rest["message"] = _FIRST.sub(lambda first: _first(first, source, places), rest["message"])
        if index is not None:
            rest["param"] = (rest["param"] or "").removeprefix(f"images[{index}].") or None
            rest["message"] = rest["message"].replace(f"images[{index}].", "")
        found.append({source.unit: place, **rest})
    return found


def _first(found: re.Match[str], source: Source, places: "list[int] | array[int]") -> str:
    at = int(found[2].replace(",", "")) - (found[1] == "line")
    return f"was used at {source.unit} {places[at]:,} already" if 0 <= at < len(places) else found[0]


def _placeless(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry.get(name) for name in ("param", "code", "message")}


def _again(job_id: str) -> str:
    """The command that was given, with --resume."""
    words, given = [], iter(sys.argv[1:])
    for word in given:
        if word in ("--resume", "--idempotency-key"):
            next(given, None)
        elif not word.startswith(("--resume=", "--idempotency-key=")):
            words.append(word)
    shown = shlex.join(["presswork", *words, "--resume", job_id])
    return f"(the same input) | {shown}" if "-" in words else shown
