"""The screen of `presswork top`, drawn from what is known; nothing here asks a server."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from presswork_client import FailureCause, Job
from services.cli import overview, show, units
from services.cli.top_feed import View

_KEYS = "↑↓ choose  enter open  p pause or resume  + - priority  c cancel  q quit"
_KEYS_OPENED = "esc back  p pause or resume  + - priority  c cancel  q quit"
_WIDE = 100  # columns from which the speed has room
_AROUND = 4  # lines below the head that are no jobs


@dataclass(frozen=True, slots=True)
class Chosen:
    """`job_id` is the chosen job, `first` the row of the list that stands at the top, `asking` an open question."""

    job_id: str = ""
    first: int = 0
    asking: str = ""


def screen(view: View, chosen: Chosen, message: str, width: int, height: int) -> RenderableType:
    """All of it, at most `height` lines."""
    head = _head(view, width)
    foot = _foot(view, chosen, message)
    if view.opened is not None:
        return Group(*head, Text(""), *_opened(view.opened, view.failures), Text(""), foot)
    rows = visible_rows(view, width, height)
    shown = view.jobs[chosen.first : chosen.first + rows]
    table = _jobs(shown, chosen.job_id, width) if shown else Text("there are no jobs yet", style="dim")
    return Group(*head, Text(""), table, Text(""), foot)


def visible_rows(view: View, width: int, height: int) -> int:
    """How many jobs have room."""
    return max(1, height - len(_head(view, width)) - _AROUND)


def _head(view: View, width: int) -> list[Text]:
    found = view.overview
    if found is None:
        return [Text("")]
    lines = overview.health(found)[:4]
    rates, waiting, fleet = found["rates"], found["waiting"], found["accelerators"]
    busy = f"{fleet['busy']} of {units.count(fleet['busy'] + fleet['idle'], 'accelerator')} busy"
    lines.append(Text(f"{units.speed(rates['now'])} now, {units.speed(rates['hour'])} in the last hour, {busy}"))
    left = f", about {units.duration(waiting['seconds'])}" if waiting["seconds"] else ""
    lines.append(Text(f"{units.count(waiting['queued'] + waiting['rendering'], 'image')} to render{left}"))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _jobs(shown: tuple[Job, ...], job_id: str, width: int) -> Table:
    wide = width >= _WIDE
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("JOB", no_wrap=True)
    table.add_column("STATUS", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("OF", "FAILED", "LEFT", *(("SPEED",) if wide else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("LABELS", ratio=1)  # the only one that gives way
    for job in shown:
        counts = job["counts"]
        lost = counts["failed"] + counts["cancelled"]
        running = job["finished_at"] is None
        cells: list[Text | str] = [
            job["id"],
            show.status(job["status"], job["paused"]),
            show.bar(counts["done"], lost, counts["total"], 10) if counts["total"] else "",
            f"{counts['total']:,}",
            Text(f"{counts['failed']:,}" if counts["failed"] else "", style="red"),
            units.duration(job["eta_seconds"]) if running and job["eta_seconds"] is not None else "",
        ]
        if wide:
            cells.append(units.speed(job["rate"]) if running and job["rate"] else "")
        cells.append(Text(show.labels(job), style="dim", no_wrap=True, overflow="ellipsis"))
        table.add_row(*cells, style="reverse" if job["id"] == job_id else "")
    return table


def _opened(job: Job, causes: Sequence[FailureCause]) -> list[RenderableType]:
    return [show.job(job), *((Text(""), overview.failures(causes, "FAILED")) if causes else ())]


def _foot(view: View, chosen: Chosen, message: str) -> Text:
    if chosen.asking:
        return Text(chosen.asking, style="bold yellow", no_wrap=True, overflow="ellipsis")
    if view.failing_since:
        since = units.duration(time.monotonic() - view.failing_since)
        return Text(f"no answer for {since}: {view.error}", style="red", no_wrap=True, overflow="ellipsis")
    keys = _KEYS if view.opened is None else _KEYS_OPENED
    return Text(message or keys, style="" if message else "dim", no_wrap=True, overflow="ellipsis")
