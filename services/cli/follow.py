"""Following a job or an export until it ends: a bar for people who look, lines for logs, JSON for programs."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from presswork_client import Client, ClientError, Export, Job
from services.cli import show, units
from services.cli.exits import Exit, Interrupted

T = TypeVar("T")
POLL_SECONDS = 0.5
AWAY_SECONDS = 600.0  # how long a server that was there may be away
_LINE_SECONDS = 10.0  # between lines in a log


def job(client: Client, job_id: str, as_json: bool) -> Exit:
    """Follows a job to its end, says how it ended, and tells by its code whether all images were made."""
    try:
        found = _job_json(client, job_id) if as_json else _job_shown(client, job_id)
    except KeyboardInterrupt:
        raise Interrupted(f"the job goes on; `presswork watch {job_id}` looks again") from None
    if not as_json:
        show.render(show.job(found))
    return Exit.OK if found["counts"]["done"] == found["counts"]["total"] else Exit.INCOMPLETE


def export(client: Client, export_id: str) -> Export:
    """Follows an export to its end."""
    with bar() as progress:
        task = progress.add_task("exporting", total=None, tail="")
        for found in _polls(lambda: client.export(export_id), lambda export: bool(export["finished_at"])):
            counts = found["counts"]
            words = f"{found['status']}, {units.size(found['bytes'])}"
            progress.update(task, completed=counts["done"], total=counts["total"] or None, tail=words)
    return found


def _job_json(client: Client, job_id: str) -> Job:
    """A line of JSON whenever something has changed."""
    last: Job | None = None
    for found in _polls(lambda: client.job(job_id), _finished):
        if last is None or _news(found) != _news(last):
            show.document(found)
            last = found
    return found


def _job_shown(client: Client, job_id: str) -> Job:
    if not sys.stderr.isatty():
        return _job_logged(client, job_id)
    with bar() as progress:
        task = progress.add_task("", total=None, tail="")
        for found in _polls(lambda: client.job(job_id), _finished):
            counts = found["counts"]
            final = counts["done"] + counts["failed"] + counts["cancelled"]
            word = "paused" if found["paused"] and not found["finished_at"] else found["status"]
            progress.update(
                task,
                description=word.replace("_", " "),
                completed=final,
                total=counts["total"] or None,
                tail=_tail(found),
            )
    return found


def _job_logged(client: Client, job_id: str) -> Job:
    last, shown = None, 0.0
    for found in _polls(lambda: client.job(job_id), _finished):
        now = time.monotonic()
        if _news(found) != last and (now - shown >= _LINE_SECONDS or last is None):
            counts = found["counts"]
            show.say(f"{found['id']} {found['status']}: {counts['done']:,} of {counts['total']:,} done, {_tail(found)}")
            last, shown = _news(found), now
    return found


def _polls(ask: Callable[[], T], ended: Callable[[T], bool]) -> Iterator[T]:
    """What `ask` answers, again and again, until it has ended; an outage on the way is waited for."""
    seen, away = False, 0.0
    while True:
        try:
            found = ask()
        except ClientError as error:
            gone = error.status in (0, 502, 503, 504)
            away = away or time.monotonic()
            if not (seen and gone) or time.monotonic() - away > AWAY_SECONDS:
                raise
        else:
            seen, away = True, 0.0
            yield found
            if ended(found):
                return
        time.sleep(POLL_SECONDS)


def _finished(found: Job) -> bool:
    return bool(found["finished_at"])


def _news(found: Job) -> tuple[object, ...]:
    return found["status"], found["paused"], found["priority"], tuple(found["counts"].values())


def _tail(found: Job) -> str:
    counts = found["counts"]
    words = [f"{counts['failed']:,} failed"] if counts["failed"] else []
    if found["rate"]:
        words.append(units.speed(found["rate"]))
    if found["eta_seconds"] is not None and not found["finished_at"]:
        words.append(f"{units.duration(found['eta_seconds'])} left")
    return ", ".join(words) or f"{counts['queued']:,} queued"


class Amount(ProgressColumn):
    """done/total with separators, and as much as is known."""

    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}/{total}")


def bar() -> Progress:
    """For people who look; a log gets no bars."""
    console = show.err()
    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=20),
        Amount(),
        TextColumn("{task.fields[tail]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
