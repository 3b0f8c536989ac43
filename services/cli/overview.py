"""`presswork overview`: whether all is well and why not, what waits, how fast it goes, and what failed today."""

from collections.abc import Iterable

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from presswork_client import FailureCause, Overview
from services.cli import options, show, units
from services.cli.exits import Exit, guarded
from services.cli.profile import connect

_STYLES = {"ok": "green", "degraded": "yellow", "failing": "red"}
_WORDS = {"ok": "all is well", "degraded": "something needs a look", "failing": "something is wrong"}


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("overview", rich_help_panel=panel)(guarded(overview))


def overview(profile: options.ProfileName = None, as_json: options.Json = False) -> Exit:
    """Show whether all is well and why not, what waits, how fast it goes and what failed today.

    Exit code 1: something is wrong, so that nothing can be submitted or rendered.
    """
    with connect(profile) as client:
        found = client.overview()
    if as_json:
        show.document(found)
    else:
        for part in _parts(found):
            show.render(part)
    return Exit.FAILED if found["status"] == "failing" else Exit.OK


def _parts(found: Overview) -> list[RenderableType]:
    parts: list[RenderableType] = [*health(found), _figures(found)]
    if found["jobs"]:
        parts += ["", show.jobs(found["jobs"])]
    if found["failures"]:
        parts += ["", failures(found["failures"], "FAILED TODAY")]
    return parts


def health(found: Overview) -> list[Text]:
    """Whether all is well, and a line for each reason why not."""
    head = Text(_WORDS[found["status"]], style=_STYLES[found["status"]])
    return [head, *(Text(f"  {issue['message']}", style=_STYLES[issue["status"]]) for issue in found["issues"])]


def _figures(found: Overview) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rates = found["rates"]
    spans = (
        ("now", rates["now"]),
        ("in the last hour", rates["hour"]),
        ("in the last day", rates["day"]),
        ("in the last week", rates["week"]),
    )
    table.add_row("speed", ", ".join(f"{units.speed(rate)} {words}" for words, rate in spans))
    waiting = found["waiting"]
    words = f"{'at least ' * waiting['more']}{units.count(waiting['queued'] + waiting['rendering'], 'image')}"
    words += f" in {units.count(waiting['jobs'], 'job')}"
    if waiting["seconds"]:
        words += f", about {units.duration(waiting['seconds'])}"
    words = words if waiting["jobs"] else "nothing"
    if waiting["paused"]:
        words += f"; {units.count(waiting['paused'], 'image')} of paused jobs"
    table.add_row("waiting", words)
    fleet = found["accelerators"]
    of = f"{fleet['busy']} of {units.count(fleet['busy'] + fleet['idle'], 'accelerator')} busy"
    table.add_row(
        "workers", of + "".join(f", {fleet[name]} {name}" for name in ("drained", "sick", "starting") if fleet[name])
    )
    return table


def failures(causes: Iterable[FailureCause], title: str) -> Table:
    """The causes of failures, with how many and the newest reason of each."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title, justify="right", no_wrap=True)
    table.add_column("CAUSE", no_wrap=True)
    table.add_column("NEWEST REASON", overflow="fold", ratio=1)
    for cause in causes:
        table.add_row(f"{cause['count']:,}", Text(cause["code"], style="red"), Text(cause["message"]))
    return table
