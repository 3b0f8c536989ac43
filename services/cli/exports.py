"""`presswork export` and `exports`: the server writes a data set; it is followed and downloaded."""

import inspect
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from presswork_client import Client, ClientError, Export, ExportFile, file_sha256
from services.cli import completion, follow, options, show
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.profile import connect
from services.core.exports.formats import FormatName
from services.core.exports.options import ALLOWED, Options
from services.core.model import suggestions
from services.core.model.errors import PressworkError

_PATIENCE_SECONDS = 60.0
_PARALLEL = 4
_EXPORT = "export_"
_OPTIONS = "Options of a format: " + "; ".join(f"{name} ({ALLOWED[name]})" for name in Options.model_fields) + "."


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the commands of this file."""
    app.command("export", rich_help_panel=panel, help=f"{inspect.getdoc(export)}\n\n{_OPTIONS}")(guarded(export))
    app.command("exports", rich_help_panel=panel)(guarded(list_exports))


def _option_names(incomplete: str) -> list[tuple[str, str]]:
    return [(f"{name}=", ALLOWED[name]) for name in Options.model_fields if name.startswith(incomplete)]


def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="JOB",
            help="A job's id, or an export's to go on with.",
            show_default=False,
            autocompletion=completion.job_ids,
        ),
    ],
    form: Annotated[FormatName, typer.Option("--format", "-f", help="The data set's format.")] = "webdataset",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Download it to here, verified.", show_default=False),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help=f"One of {', '.join(Options.model_fields)}; may be repeated.",
            show_default=False,
            autocompletion=_option_names,
        ),
    ] = None,
    score: options.Scores = None,
    metadata: options.Metadata = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start it and return.")] = False,
    key: options.Key = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Export a finished job as a data set, and download it with -o.

    If this is interrupted, the export goes on; `presswork export EXPORT -o DIR` resumes the download.
    """
    if no_wait and output is not None:
        raise Usage("--no-wait returns before there is anything to download; leave out --no-wait or --output.")
    given = {name: _value(word) for name, word in options.pairs(option, "--option").items()}
    if score:
        given["scores"] = score
    if metadata:
        given["metadata"] = [str(one) for one in options.metadata(metadata)]
    for name in given.keys() - Options.model_fields.keys():
        raise Usage(f"--option {name}: {suggestions.unknown_field(name, Options.model_fields)} {_OPTIONS}")
    with connect(profile, _PATIENCE_SECONDS) as client:
        if what.startswith(_EXPORT):
            made = client.export(what)
        else:
            if output is not None:  # before the server writes what could not be kept there
                _check_folder(output, what, form, given)
            made = client.create_export(what, form, given or None, idempotency_key=key)
        if not no_wait:
            made = _finish(client, made, output)
    if as_json:
        show.document(made)
    else:
        show.render(show.exports([made]))
    return Exit.OK


def list_exports(job: options.JobId, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List a job's exports."""
    with connect(profile) as client:
        found = list(client.exports(job))
    if as_json:
        for one in found:
            show.document(one)
    elif found:
        show.render(show.exports(found))
    else:
        show.say(f"{job} has no exports; `presswork export {job}` makes one")


def _finish(client: Client, made: Export, output: Path | None) -> Export:
    again = f"`presswork export {made['id']}" + (f" -o {output}`" if output else "`")
    try:
        show.say(f"{made['id']} is {made['status']}", style="dim")
        made = follow.export(client, made["id"])
        if made["status"] != "completed":
            raise PressworkError(f"the export {made['status']}: {made['error'] or 'no reason is given'}")
        if output is not None:
            _fetch_all(client, made, output)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {again} goes on") from None
    return made


def _check_folder(folder: Path, job_id: str, form: str, wanted: Mapping[str, object]) -> None:
    """Raises Usage if the folder holds another export, whose files might be replaced or mixed with this one's."""
    try:
        held = json.loads((folder / "manifest.json").read_bytes())
        same = held["job"] == job_id and held["format"] == form
        same = same and all(wanted[name] == held["options"].get(name, wanted[name]) for name in wanted)
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise Usage(f"{folder} holds something other than this export of {job_id}; name another folder with --output.")


def _fetch_all(client: Client, made: Export, folder: Path) -> None:
    _check_folder(folder, made["job_id"], made["format"], cast("Mapping[str, object]", made["options"]))
    folder.mkdir(parents=True, exist_ok=True)
    console = show.err()
    bar = Progress(
        TextColumn("downloading"), BarColumn(20), DownloadColumn(), TransferSpeedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    pool = ThreadPoolExecutor(_PARALLEL)
    files = 0
    try:
        with bar:
            task = bar.add_task("", total=made["bytes"] or None)
            running: set[Future[None]] = set()
            for file in client.export_files(made["id"]):
                if len(running) >= _PARALLEL:
                    running = _settle(running)
                running.add(pool.submit(_fetch, client, made["id"], file, folder, bar, task))
                files += 1
            while running:
                running = _settle(running)
    finally:
        pool.shutdown(cancel_futures=True)
    show.say(f"{files:,} files are in {folder}; every sha256 matches")


def _settle(running: "set[Future[None]]") -> "set[Future[None]]":
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return rest


def _fetch(client: Client, export_id: str, file: ExportFile, folder: Path, bar: Progress, task: Any) -> None:
    path = folder / _inside(file["path"])
    if path.exists() and path.stat().st_size == file["bytes"] and file_sha256(path) == file["sha256"]:
        bar.advance(task, file["bytes"])
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        client.save(file, path, lambda count: bar.advance(task, count))
    except ClientError as error:
        if error.status != 403:
            raise
        fresh = next(_named(client, export_id, file["path"]), file)  # the address was too old
        client.save(fresh, path, lambda count: bar.advance(task, count))


def _named(client: Client, export_id: str, path: str) -> Iterator[ExportFile]:
    return (file for file in client.export_files(export_id) if file["path"] == path)


def _inside(path: str) -> PurePosixPath:
    """A path inside the folder. Raises if the server names one outside."""
    found = PurePosixPath(path)
    if found.is_absolute() or ".." in found.parts or not found.parts:
        raise PressworkError(f"the server named a file {path!r}, outside the folder; it was not fetched.")
    return found


def _value(word: str) -> object:
    """The word as JSON if it is valid JSON, else as text."""
    try:
        return json.loads(word)
    except ValueError:
        return word
