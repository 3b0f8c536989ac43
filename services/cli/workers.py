"""`presswork workers`: lists the fleet, and drains and resumes its devices."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from presswork_client import Client, Worker
from services.cli import options, show
from services.cli.exits import Usage, guarded
from services.cli.profile import connect

app = typer.Typer(no_args_is_help=True, help="List, drain and resume workers.")
_Name = Annotated[str, typer.Argument(metavar="NAME", help="A worker's id, or a host: all of its workers.")]


def list_all(profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List the workers of the last five minutes. A key without the scope operate sees devices and no hosts."""
    with connect(profile) as client:
        found, devices = client.workers(), client.devices()
    _print(found, as_json)
    if found:
        return
    for device in devices if as_json else ():
        show.document(device)
    if devices and not as_json:
        show.render(show.devices(devices))
        show.say("hosts are shown to keys with the scope operate", style="dim")
    elif not as_json:
        show.say("no worker was seen in the last five minutes")


def drain(name: _Name, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Drain workers: they finish what they hold and take nothing new.

    This holds for their devices, also when they are started again, until `presswork workers resume`.
    """
    _each(name, Client.drain_worker, profile, as_json)


def resume(name: _Name, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Let drained workers take work again."""
    _each(name, Client.resume_worker, profile, as_json)


def _each(name: str, verb: Callable[[Client, str], Worker], profile: str | None, as_json: bool) -> None:
    with connect(profile) as client:
        live = [one for one in client.workers() if one["state"] not in ("starting", "stopped", "crashed")]
        chosen = [one for one in live if name in (one["id"], one["host"])]
        if not chosen:
            raise Usage(
                f"There is no worker and no host {name[:80]!r}; `presswork workers list` shows those there are."
            )
        found = [verb(client, one["id"]) for one in chosen]
    _print(found, as_json)


def _print(found: list[Worker], as_json: bool) -> None:
    for worker in found if as_json else ():
        show.document(worker)
    if found and not as_json:
        show.render(show.workers(found))


_COMMANDS: dict[str, Callable[..., Any]] = {"list": list_all, "drain": drain, "resume": resume}
for _name, _verb in _COMMANDS.items():
    app.command(_name)(guarded(_verb))
