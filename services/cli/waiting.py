"""`presswork wait`: waits until several jobs have ended, and says early if they will not by the time promised."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from presswork_client import Client, ClientError, Job
from services.cli import completion, follow, options, show, units
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.profile import connect

POLL_SECONDS = 2.0
_LINE_SECONDS = 30.0  # between lines in a log
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
Outlook = Literal["in time", "at risk", "late"]


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("wait", rich_help_panel=panel)(guarded(wait))


def wait(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB|NAME=VALUE...",
            help="Ids of jobs, or labels: every job that has one.",
            show_default=False,
            autocompletion=completion.job_ids,
        ),
    ],
    done_by: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Say early if it will not be done by then: 06:00 (here, the next one), or 2026-12-01T06:00+01:00.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="SPAN", help="Give up after 30min, 12h or 2d.", show_default=False)
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Wait until jobs have ended, by their ids or a label.

    Jobs that get the label while it waits are waited for, too. Exit code 3: images failed or were not made; 1: the
    timeout came first. With --json it prints each job as it ends.
    """
    now = datetime.now().astimezone()
    promised = None if done_by is None else moment(done_by, now)
    ends = None if timeout is None else time.monotonic() + options.span(timeout, "--timeout").total_seconds()
    with connect(profile) as client:
        try:
            found = _Wait(client, what, promised, ends, as_json=as_json).run()
        except KeyboardInterrupt:
            raise Interrupted("the jobs go on; the same command waits again") from None
    if not as_json:
        _say_result(found, promised)
    if any(job["finished_at"] is None for job in found):
        return Exit.FAILED
    return Exit.OK if all(job["counts"]["done"] == job["counts"]["total"] for job in found) else Exit.INCOMPLETE


def moment(text: str, now: datetime) -> datetime:
    """The next time that the clock here shows 06:00, or a moment with its zone. Raises Usage."""
    if clock := _CLOCK.fullmatch(text):
        today = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return today if today > now else today + timedelta(days=1)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise Usage(f"--done-by is {text!r}; it must be a time such as 06:00, or 2026-12-01T06:00+01:00 with its zone.")
    if found <= now:
        raise Usage(f"--done-by is {text}, which has passed.")
    return found


def outlook(jobs: list[Job], promised: datetime, now: datetime) -> Outlook | None:
    """Whether the jobs will be done in time, by their own estimates; None while some of them have none.

    "late": not even by the lower end of an estimate. "at risk": not by the upper end.
    """
    left = (promised - now).total_seconds()
    running = [job for job in jobs if job["finished_at"] is None]
    if any(job["eta_low_seconds"] is None for job in running):
        return None
    if any((job["eta_low_seconds"] or 0) > left for job in running):
        return "late"
    return "at risk" if any((job["eta_high_seconds"] or 0) > left for job in running) else "in time"


@dataclass(slots=True)
class _Wait:
    client: Client
    what: list[str]
    promised: datetime | None
    ends: float | None
    as_json: bool
    said: Outlook | None = "in time"

    def run(self) -> list[Job]:
        """The jobs as they are when all have ended, or when it gave up."""
        ended: set[str] = set()
        found: list[Job] = []
        logged = -_LINE_SECONDS
        with follow.bar() as progress:
            task = progress.add_task("", total=None, tail="")
            for found in follow.through_outages(self._polls):
                for job in found:
                    if job["finished_at"] is not None and job["id"] not in ended:
                        ended.add(job["id"])
                        if self.as_json:
                            show.document(job)
                self._warn(found)
                done, total = _final(found)
                tail = f"{len(ended):,} of {units.count(len(found), 'job')} ended{_left(found)}"
                progress.update(task, description="waiting", completed=done, total=total, tail=tail)
                if progress.disable and time.monotonic() - logged >= _LINE_SECONDS and len(ended) < len(found):
                    show.say(f"{done:,} of {units.count(total, 'image')}, {tail}")
                    logged = time.monotonic()
        return found

    def _polls(self) -> Iterator[list[Job]]:
        while True:
            found = self._look()
            yield found
            if all(job["finished_at"] for job in found):
                return
            if self.ends is not None and time.monotonic() >= self.ends:
                return
            time.sleep(POLL_SECONDS)

    def _look(self) -> list[Job]:
        found: dict[str, Job] = {}
        for word in self.what:
            if "=" not in word:
                found[word] = self.client.job(word)
                continue
            name, value = next(iter(options.pairs([word], "the label").items()))
            of_label = {job["id"]: job for job in self.client.jobs(label=f"{name}:{value}", page=1000)}
            if not of_label:
                raise ClientError(404, "not_found", f"No job has the label {word}.")
            found |= of_label
        return list(found.values())

    def _warn(self, found: list[Job]) -> None:
        """Says how it stands with the promise whenever that has changed."""
        if self.promised is None:
            return
        now = datetime.now(UTC)
        seen = outlook(found, self.promised, now)
        if seen is None or seen == self.said:
            return
        self.said = seen
        until = f"{self.promised.astimezone():%Y-%m-%d %H:%M}"
        last = max((job["eta_seconds"] or 0.0 for job in found if job["finished_at"] is None), default=0.0)
        done = f"{(now + timedelta(seconds=last)).astimezone():%Y-%m-%d %H:%M}"
        words = {
            "late": f"this will not be done by {until}: at the measured rate it takes until about {done}",
            "at risk": f"this may not be done by {until}: at the measured rate it takes until about {done}, or longer",
            "in time": f"this will be done by {until} again, at about {done}",
        }
        show.say(words[seen], style="" if seen == "in time" else "yellow")


def _final(found: list[Job]) -> tuple[int, int]:
    counts = [job["counts"] for job in found]
    return (
        sum(each["done"] + each["failed"] + each["cancelled"] for each in counts),
        sum(each["total"] for each in counts),
    )


def _left(found: list[Job]) -> str:
    etas = [job["eta_seconds"] for job in found if job["finished_at"] is None]
    known = [eta for eta in etas if eta is not None]
    return f", {units.duration(max(known))} left" if known and len(known) == len(etas) else ""


def _say_result(found: list[Job], promised: datetime | None) -> None:
    running = sum(job["finished_at"] is None for job in found)
    counts = [job["counts"] for job in found]
    done, total = sum(each["done"] for each in counts), sum(each["total"] for each in counts)
    failed = sum(each["failed"] for each in counts)
    words = f"{done:,} of {units.count(total, 'image')} in {units.count(len(found), 'job')} done"
    if failed:
        words += f", {failed:,} failed"
    if running:
        show.say(f"the timeout came first: {words}, and {units.count(running, 'job')} not ended", style="yellow")
        return
    show.say(words)
    last = max(units.moment(str(job["finished_at"])) for job in found)
    if promised is not None and last > promised:
        late = units.duration((last - promised).total_seconds())
        show.say(f"that was {late} later than {promised.astimezone():%Y-%m-%d %H:%M}", style="yellow")
