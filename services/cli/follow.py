"""Follows a job or an export until it ends: a bar on a terminal, lines in a log, JSON for programs."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from presswork_client import Client, ClientError, Export, Job
from services.cli import show, units
from services.cli.exits import Exit, Interrupted
from services.cli.standstill import Standstill

T = TypeVar("T")
POLL_SECONDS = 0.5
MAX_OUTAGE_SECONDS = 600.0  # once the server has answered
_LINE_SECONDS = 10.0  # between lines in a log


def job(client: Client, job_id: str, as_json: bool) -> Exit:
    """Follows a job to its end and prints the result. The exit code says whether all images were made."""
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
        for found in through_outages(lambda: _polls(client, export_id)):
            counts = found["counts"]
            words = f"{found['status']}, {units.size(found['bytes'])}"
            progress.update(task, completed=counts["done"], total=counts["total"] or None, tail=words)
    return found


def _job_json(client: Client, job_id: str) -> Job:
    """Prints a line of JSON for every change."""
    last: Job | None = None
    for found in through_outages(lambda: client.watch(job_id)):
        if last is None or _visible_state(found) != _visible_state(last):
            show.document(found)
            last = found
    return found


def _job_shown(client: Client, job_id: str) -> Job:
    if not sys.stderr.isatty():
        return _job_logged(client, job_id)
    with bar() as progress:
        task = progress.add_task("", total=None, tail="")
        for found in _followed(client, job_id, lambda sentence: _tell_above(progress, task, sentence)):
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
    for found in _followed(client, job_id, show.say):
        now = time.monotonic()
        if _visible_state(found) != last and (now - shown >= _LINE_SECONDS or last is None):
            counts, tail = found["counts"], _tail(found)
            done = f"{counts['done']:,} of {counts['total']:,} done"
            show.say(f"{found['id']} {found['status']}: {done}" + (f", {tail}" if tail else ""))
            last, shown = _visible_state(found), now
    return found


def _followed(client: Client, job_id: str, tell: Callable[[str], None]) -> Iterator[Job]:
    """The job at each change; `tell` hears what it waits for while there is none."""
    with Standstill(client, job_id, tell) as standstill:
        for found in through_outages(lambda: client.watch(job_id)):
            standstill.moved()
            yield found


def _tell_above(progress: Progress, task: TaskID, sentence: str) -> None:
    progress.console.print(Text(f"presswork: {sentence}", style="yellow"))
    progress.update(task, tail="waits")


def _polls(client: Client, export_id: str) -> Iterator[Export]:
    while True:
        found = client.export(export_id)
        yield found
        if found["finished_at"]:
            return
        time.sleep(POLL_SECONDS)


def through_outages(follow: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yields what `follow` yields, until it ends. After the first answer it waits for the end of an outage."""
    seen, failing_since = False, 0.0
    while True:
        try:
            for found in follow():
                seen, failing_since = True, 0.0
                yield found
            return
        except ClientError as error:
            is_outage = error.status in (0, 502, 503, 504)
            failing_since = failing_since or time.monotonic()
            if not (seen and is_outage) or time.monotonic() - failing_since > MAX_OUTAGE_SECONDS:
                raise
        time.sleep(POLL_SECONDS)


def _visible_state(found: Job) -> tuple[object, ...]:
    return found["status"], found["paused"], found["priority"], tuple(found["counts"].values())


def _tail(found: Job) -> str:
    counts = found["counts"]
    words = [f"{counts['failed']:,} failed"] if counts["failed"] else []
    if found["rate"]:
        words.append(units.speed(found["rate"]))
    if found["eta_seconds"] is not None and not found["finished_at"]:
        words.append(f"{units.duration(found['eta_seconds'])} left")
    waiting = f"{counts['queued']:,} queued" if counts["queued"] else ""
    return ", ".join(words) or (f"{counts['rendering']:,} rendering" if counts["rendering"] else waiting)


class Amount(ProgressColumn):
    """done/total with separators; `?` for a total that is not known."""

    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}/{total}")


def bar() -> Progress:
    """A progress bar on a terminal; nothing elsewhere."""
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
