"""`presswork schedules`: what is submitted at set times."""

import json
import tomllib
from collections.abc import Callable, Iterator
from datetime import datetime, time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from presswork_client import Schedule
from services.cli import options, show
from services.cli.exits import Usage, guarded
from services.cli.profile import connect
from services.core.items.errors import Unreadable

app = typer.Typer(no_args_is_help=True, help="Submit jobs at set times.")
_Name = Annotated[str, typer.Argument(metavar="NAME", help="A schedule's name.", show_default=False)]
_FIELDS = (
    "name, cron or at, timezone, target (job or batch), misfire, misfire_limit, overlap, deadline, paused"  # of the API
)


def ls(profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List the schedules by name, each with its next time and its last run."""
    with connect(profile) as client:
        found = list(client.schedules())
    for one in found if as_json else ():
        show.document(one)
    if found and not as_json:
        show.render(show.schedules(found))
    if not found and not as_json:
        show.say("there is no schedule; `presswork schedules apply FILE` makes one")


def apply(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="TOML or JSON: one schedule, or tables [schedule.NAME].", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The schedule's name.", show_default=False)] = None,
    cron: Annotated[
        str | None,
        typer.Option(metavar="CRON", help="Minute, hour, day of month, month, day of week.", show_default=False),
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="For one run: 2027-01-01T06:00:00+01:00.", show_default=False)
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Such as Europe/Berlin; without, UTC.", show_default=False)
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What is submitted: JSON or TOML as POST /v1/jobs takes it.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="FILE_ID", help="Or the id of an uploaded file.", show_default=False)
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="When a run is to be done: 06:00, 5h, 90m.", show_default=False)
    ] = None,
    misfire: Annotated[
        Literal["latest", "all", "none"] | None,
        typer.Option(help="Which missed runs are made up for.", show_default=False),
    ] = None,
    overlap: Annotated[
        Literal["skip", "queue", "cancel"] | None,
        typer.Option(help="If the run before goes on: skip, queue, or cancel it.", show_default=False),
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Make schedules, or change them: of a file, or one by options.

    Applying the same again changes nothing but their next time, and runs under way go on.
    """
    given = {"name": name, "cron": cron, "at": at, "timezone": timezone, "deadline": deadline, "misfire": misfire,
             "overlap": overlap}  # fmt: skip
    asked: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    if job is not None and batch is not None:
        raise Usage("Give --job or --batch, not both.")
    if job is not None:
        asked["target"] = {"job": read(job)}
    if batch is not None:
        asked["target"] = {"batch": {"input_file_id": batch}}
    if (file is None) == (not asked):
        raise Usage("Give a file, or --name with --cron or --at, and --job or --batch.")
    wanted = list(of_file(file)) if file is not None else [asked]
    for one in wanted:
        if not isinstance(one.get("name"), str):
            raise Usage(f"A schedule has no name; its fields are {_FIELDS}.")
    with connect(profile) as client:
        found = [client.put_schedule(**one) for one in wanted]
    _print(found, as_json)


def show_one(name: _Name, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Show a schedule: what it submits, and when."""
    with connect(profile) as client:
        found = client.schedule(name)
    _print([found], as_json, whole=True)


def following(
    name: _Name,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="How many times.")] = 10,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Show when a schedule fires next."""
    with connect(profile) as client:
        found = client.schedule_times(name, count)
    if as_json:
        show.document(found)
    elif found["times"]:
        show.render(show.schedule_times(found))
    else:
        show.say("it does not fire: it is paused, or its time is past")


def pause(name: _Name, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Pause a schedule: it does not fire until it is resumed."""
    with connect(profile) as client:
        found = client.pause_schedule(name)
    _print([found], as_json)


def resume(name: _Name, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Resume a schedule with its next time."""
    with connect(profile) as client:
        found = client.resume_schedule(name)
    _print([found], as_json)


def run(
    name: _Name, key: options.Key = None, profile: options.ProfileName = None, as_json: options.Json = False
) -> None:
    """Run a schedule now, beside its times."""
    with connect(profile) as client:
        found = client.run_schedule(name, idempotency_key=key)
    if as_json:
        show.document(found)
    else:
        show.say(f"{found['status']}; `presswork schedules runs {name}` shows its job")


def runs(
    name: _Name, limit: options.Limit = 20, profile: options.ProfileName = None, as_json: options.Json = False
) -> None:
    """List the runs of a schedule, newest first."""
    with connect(profile) as client:
        every = client.schedule_runs(name, page=min(limit, 1000) or 1000)
        found = list(islice(every, limit or None))
    for one in found if as_json else ():
        show.document(one)
    if found and not as_json:
        show.render(show.schedule_runs(found))
    if not found and not as_json:
        show.say("it has not run yet")


def rm(name: _Name, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Delete a schedule and the list of its runs. Its jobs stay, and go on."""
    with connect(profile) as client:
        found = client.delete_schedule(name)
    if as_json:
        show.document(found)
    else:
        show.say(f"deleted the schedule {name}")


def of_file(path: Path) -> Iterator[dict[str, Any]]:
    """The schedules of a file: those of its tables `schedule.NAME`, or the one that it is."""
    found = read(path)
    tables = found.get("schedule")
    if not isinstance(tables, dict):
        yield found
        return
    for name, fields in tables.items():
        if not isinstance(fields, dict):
            raise Unreadable(f"{path}: schedule.{name} is no table of fields.")
        yield {"name": name, **fields}


def read(path: Path) -> dict[str, Any]:
    """A TOML or JSON file as an object, with times as text. Raises Unreadable."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Unreadable(
            f"{path} cannot be read as {'JSON' if path.suffix.lower() == '.json' else 'TOML'}: {error}."
        ) from None
    if not isinstance(found, dict):
        raise Unreadable(f"{path} must hold one object.")
    plain: dict[str, Any] = _plain(found)
    return plain


def _plain(value: Any) -> Any:
    """TOML's own moments and times as the API takes them."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, time):
        return f"{value:%H:%M}"
    return value.isoformat() if isinstance(value, datetime) else value


def _print(found: list[Schedule], as_json: bool, *, whole: bool = False) -> None:
    for one in found if as_json else ():
        show.document(one)
    if not as_json:
        show.render(show.schedule(found[0]) if whole else show.schedules(found))


_COMMANDS: dict[str, Callable[..., Any]] = {
    "ls": ls, "apply": apply, "show": show_one, "next": following, "pause": pause, "resume": resume, "run": run,
    "runs": runs, "rm": rm,
}  # fmt: skip
for _name, _verb in _COMMANDS.items():
    app.command(_name)(guarded(_verb))
