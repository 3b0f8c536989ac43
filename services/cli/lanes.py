"""`presswork lanes`: what waits, by shape and priority, and who can serve it."""

import typer
from rich.table import Table
from rich.text import Text

from presswork_client import Lane
from services.cli import options, show, units
from services.cli.exits import guarded
from services.cli.profile import connect


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("lanes", rich_help_panel=panel)(guarded(lanes))


def lanes(profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Show what waits: by size, steps, model and priority, since when, and who can serve it.

    A key with the scope admin sees what waits of all tenants.
    """
    with connect(profile) as client:
        found = client.lanes()
    for lane in found["data"] if as_json else ():
        show.document(lane)
    if as_json:
        return
    if not found["data"]:
        show.say("nothing waits")
        return
    show.render(_table(found["data"]))
    if found["more"]:
        show.say("more jobs wait than were looked at: the numbers are the least", style="dim")


def _table(found: list[Lane]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    names = ("PRIORITY", "SIZE", "STEPS", "MODEL", "TENANT", "IMAGES", "JOBS", "OLDEST", "SERVED BY", "TAKES")
    for name in names:
        right = name in ("STEPS", "IMAGES", "JOBS", "OLDEST", "TAKES")
        table.add_column(
            name,
            justify="right" if right else "left",
            no_wrap=name not in ("MODEL", "TENANT", "SERVED BY"),
            overflow="fold",
        )
    for lane in found:
        served = ", ".join(f"{entry['workers']} x {entry['device']}" for entry in lane["devices"])
        table.add_row(
            lane["priority"],
            lane["size"],
            f"{lane['num_inference_steps']}{'' if lane['guided'] else ' unguided'}{_from(lane)}"
            + (f", {lane['prompt_chunks']} chunks" if lane["prompt_chunks"] > 1 else ""),
            Text(lane["model"] + (f"\nin {lane['reproducibility_class']}" if lane["reproducibility_class"] else "")),
            lane["tenant"],
            f"{'' if lane['exact'] else 'about '}{lane['images']:,}",
            f"{lane['jobs']:,}",
            units.duration(lane["oldest_seconds"]),
            Text(served) if served else Text("nobody", style="red"),
            "not known" if lane["seconds"] is None else units.duration(lane["seconds"]),
        )
    return table


def _from(lane: Lane) -> str:
    return f" from {lane['first_step']}" if lane["first_step"] else ""
