"""Sends requests: few in one submission, many as a draft in chunks, which can be resumed."""

import json
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
from services.cli import follow, refusals, show
from services.cli.exits import BadInput, Interrupted
from services.core.items.reading import Row, Source
from services.core.model import strict_json
from services.core.model.errors import PressworkError

CHUNK_REQUESTS = 50_000
CHUNK_BYTES = 64 << 20
_NOTHING, _KEPT = "; nothing was submitted.", ", counted from the part that was refused."
_JSON_BYTES = 24 << 20  # below the server's limit for a JSON body


@dataclass
class Part:
    """Some requests, one a line, and their places in the source. `bad`: rows among them that cannot be requests."""

    number: int
    body: bytearray = field(default_factory=bytearray)
    places: "array[int]" = field(default_factory=lambda: array("Q"))
    bad: list[Row] = field(default_factory=list)

    def take(self, row: Row) -> None:
        if row.problem is not None:
            self.bad.append(row)
            return
        self.body += row.line
        self.body += b"\n"
        self.places.append(row.place)

    def rows(self) -> list[Row]:
        """What it was made of, without the cells."""
        lines = bytes(self.body).split(b"\n")[:-1]
        good = [Row(place, line) for place, line in zip(self.places, lines, strict=True)]
        return sorted([*good, *self.bad], key=lambda row: row.place) if self.bad else good


def parts(rows: Iterable[Row], max_requests: int) -> Iterator[Part]:
    """Splits rows into parts. The same rows always give the same parts, so that a draft can be resumed."""
    part = Part(0)
    for row in rows:
        taken = len(part.places) + len(part.bad)
        if taken and (taken >= max_requests or len(part.body) + len(row.line) >= CHUNK_BYTES):
            yield part
            part = Part(part.number + 1)
        part.take(row)
    if part.places or part.bad:
        yield part


def send(
    client: Client, source: Source, rows: Iterable[Row], head: Mapping[str, Any], max_requests: int, key: str | None
) -> Job:
    """Submits rows of the source. Up to two parts are sent as one submission, more as a draft.

    Raises:
        BadInput: the server refused it. Each problem has its place in the source.
        Interrupted: Ctrl-C was pressed. The message has the command that resumes.
    """
    coming = parts(rows, max_requests)
    first = _first_parts(source, coming)
    if not first:
        raise BadInput(f"{source.name} holds no requests.", [])
    if any(part.bad for part in first):
        raise refusals.of_rows(client, source, _rows(chain(first, coming)), after=_NOTHING)
    if len(first) < 3 and sum(len(part.body) for part in first) <= CHUNK_BYTES:
        return _send_whole(client, source, first, head, key)
    draft = client.create_draft(idempotency_key=key, **head)
    show.say(
        f"{draft['id']} takes the requests in parts; if that is interrupted, resume with:\n  {_again(draft['id'])}"
    )
    return _send_parts(client, source, draft["id"], chain(first, coming), {})


def go_on(client: Client, source: Source, rows: Iterable[Row], job_id: str, max_requests: int) -> Job:
    """Sends the missing parts of a draft and finalizes it."""
    job = client.job(job_id)
    if job["status"] != "draft":
        show.say(f"{job_id} is not a draft any more: all of it has been submitted")
        return job
    there = {chunk["number"]: chunk for chunk in client.chunks(job_id)}
    show.say(f"{job_id} has {_parts(len(there))}, {sum(c['requests'] for c in there.values()):,} requests", style="dim")
    return _send_parts(client, source, job_id, parts(rows, max_requests), there)


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
        return client.submit_body(_json(client, source, first, body, head), "application/json", idempotency_key=key)
    except ClientError as error:
        raise refusals.of_server(client, source, error, places, _rows(first), after=_NOTHING) from None
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped while it was being submitted: either all of it was recorded or nothing; `presswork ls` shows which"
        ) from None


def _json(client: Client, source: Source, first: list[Part], body: bytes, head: Mapping[str, Any]) -> bytes:
    """The lines as one JSON body with the job's options. Raises BadInput for lines that are not JSON."""
    lines = body.removesuffix(b"\n").split(b"\n")
    try:
        for line in lines:
            strict_json.loads(line)
    except strict_json.BadJson:
        raise refusals.of_rows(client, source, _rows(first), after=_NOTHING) from None
    return json.dumps(head).encode()[:-1] + b',"images":[' + b",".join(lines) + b"]}"


def _send_parts(
    client: Client, source: Source, job_id: str, coming: Iterable[Part], there: Mapping[int, Stored]
) -> Job:
    sent = requests = images = 0
    waiting = iter(coming)
    try:
        with follow.bar() as progress:
            task = progress.add_task("submitting", total=None, tail="")
            for part in waiting:
                if part.bad:
                    rest = _rows(chain((part,), waiting))
                    raise refusals.of_rows(client, source, rest, after=_KEPT, hint=_correct(job_id))
                stored = there[part.number] if _is_there(part, there) else _put(client, source, job_id, part, waiting)
                sent, requests, images = sent + 1, requests + stored["requests"], images + stored["images"]
                _advance(progress, task, source, requests)
        try:
            return client.finalize(job_id, sent, images)
        except ClientError as error:
            if not error.errors:
                raise
            places = [{"chunk": entry.get("chunk"), **refusals.placeless(entry)} for entry in error.errors]
            raise BadInput(f"refused: {refusals.summary(error)}, across the parts of {job_id}.", places) from None
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what has arrived is kept ({_parts(sent)}); resume with:\n  {_again(job_id)}"
        ) from None
    except (ClientError, PressworkError):
        if not isinstance(sys.exception(), BadInput):
            show.say(f"what has arrived is kept ({_parts(sent)}); resume with:\n  {_again(job_id)}")
        raise


def _put(client: Client, source: Source, job_id: str, part: Part, coming: Iterable[Part]) -> Stored:
    try:
        return client.put_chunk(job_id, part.number, bytes(part.body))
    except ClientError as error:
        if error.code == "chunk_conflict":
            hint = f"{source.name} has changed since part {part.number} was sent; submit it as a new job."
            raise BadInput(error.message, [], hint=hint) from None
        rest = _rows(chain((part,), coming))
        raise refusals.of_server(client, source, error, part.places, rest, after=_KEPT, hint=_correct(job_id)) from None


def _is_there(part: Part, there: Mapping[int, Stored]) -> bool:
    """Whether the server has the part. The last one it has is sent again, to find out if the input has changed."""
    stored = there.get(part.number)
    return stored is not None and stored["requests"] == len(part.places) and part.number != max(there)


def _advance(progress: Progress, task: TaskID, source: Source, requests: int) -> None:
    seconds = progress.tasks[0].elapsed
    tail = "requests" + (f", {requests / seconds:,.0f} a second" if seconds else "")
    progress.update(task, completed=requests, total=source.total, tail=tail)


def _first_parts(source: Source, coming: Iterator[Part]) -> list[Part]:
    """The first three parts, read with a bar."""
    try:
        with follow.bar() as progress:
            task = progress.add_task("reading", total=None, tail="rows")
            source.watch = lambda: progress.update(task, completed=source.taken, total=source.total)
            return list(islice(coming, 3))
    except KeyboardInterrupt:
        raise Interrupted(f"stopped while {source.name} was being read; nothing was submitted") from None
    finally:
        source.watch = None


def _rows(found: Iterable[Part]) -> Iterator[Row]:
    return chain.from_iterable(part.rows() for part in found)


def _correct(job_id: str) -> str:
    return f"Correct that and resume with:\n  {_again(job_id)}"


def _parts(count: int) -> str:
    return "1 part" if count == 1 else f"{count:,} parts"


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
