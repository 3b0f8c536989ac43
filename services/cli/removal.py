"""`presswork rm`: deletes jobs, exports and files, after it has shown what that takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from presswork_client import Client, ClientError, Job
from services.cli import bulk, completion, options, show, units
from services.cli.choosing import PANEL, Chosen, choosing
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.profile import connect

_ENDED = ("completed", "failed", "cancelled", "expired")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Doomed:
    """Something to delete, and what goes with it. `found` is the server's description of it."""

    id: str
    images: int
    bytes: int
    about: str
    found: dict[str, Any]
    refusal: str | None = None


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("rm", rich_help_panel=panel)(guarded(choosing(rm)))


def rm(
    chosen: Chosen,
    things: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID",
            help="Ids of jobs, exports or files.",
            show_default=False,
            autocompletion=completion.job_ids,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="That ended longer ago: 12h, 30d, 8w. Goes with --label and --status alone.",
            show_default=False,
            rich_help_panel=PANEL,
        ),
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Delete jobs with their images, exports and output files; or exports or files alone.

    It says what that takes and asks. What is deleted cannot be restored. Of jobs that are chosen, those that have ended
    are deleted, unless --status says draft.
    """
    given = chosen.given()
    if bool(things) == bool(given or older_than is not None):
        raise Usage("Give either ids, or --all, --older-than, --label, --status and others to choose jobs.")
    if others := {str(state.value) for state in chosen.status or ()} - {*_ENDED, "draft"}:
        raise Usage(f"--status {min(others)} is of no use here: {', '.join(_ENDED)} and draft can be deleted.")
    if not things and older_than is None:
        wanted = {"status": list(_ENDED)} | chosen.wanted()
        return bulk.act("delete", chosen, profile, as_json=as_json, wanted=wanted)
    if wrong := set(given) - {"label", "status"}:
        raise Usage(f"--older-than does not go with --{min(wrong).replace('_', '-').replace('every', 'all')}.")
    yes, dry_run = chosen.yes, chosen.dry_run
    with connect(profile) as client:
        names = things or [job["id"] for job in _choose(client, chosen.wanted(), older_than)]
        found = [_look(client, name) for name in dict.fromkeys(names)]
        doomed = [one for one in found if one.refusal is None]
        for one in found:
            if one.refusal is not None:
                show.say(f"{one.id} stays: {one.refusal}")
        if things and len(doomed) < len(found):
            show.say("nothing was deleted")
            return Exit.REFUSED
        if dry_run and as_json:
            for one in doomed:
                show.document(one.found)
        if not doomed:
            show.say("there is nothing like that to delete")
            return Exit.OK
        if not as_json:
            show.render(_table(doomed))
        show.say(f"{'would delete' if dry_run else 'deletes'} {_summary(doomed)}")
        if dry_run:
            return Exit.OK
        if not yes and not agrees():
            show.say("nothing was deleted")
            return Exit.FAILED
        return _delete(client, doomed, as_json)


def _choose(client: Client, wanted: dict[str, Any], older_than: str | None) -> Iterator[Job]:
    """The jobs that fit: those that ended, unless a status is named."""
    states, label = wanted.get("status", _ENDED), wanted.get("label")
    least = options.span(older_than or "", "--older-than")
    for job in client.jobs(status=states[0] if len(states) == 1 else None, label=label):
        since = units.moment(job["as_of"]) - units.moment(job["finished_at"] or job["created_at"])
        if job["status"] in states and since > least:
            yield job


def _look(client: Client, name: str) -> Doomed:
    if name.startswith("export_"):
        export = client.export(name)
        about = f"{export['format']} of {export['job_id']}"
        return Doomed(name, 0, export["bytes"], about, dict(export))
    if name.startswith("file-"):
        file = client.file(name)
        return Doomed(name, 0, file["bytes"], file["filename"], dict(file))
    job = client.deletion(name)
    counts = {"export": job["exports"], "file": job["files"]}
    parts = [units.count(count, noun) for noun, count in counts.items() if count]
    refusal = None if job["refusal"] is None else job["refusal"]["message"]
    return Doomed(name, job["images"], job["bytes"], ", ".join(parts), dict(job), refusal)


def _table(doomed: list[Doomed]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("ID", no_wrap=True)
    table.add_column("IMAGES", justify="right", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for one in doomed[:_SHOWN]:
        table.add_row(one.id, f"{one.images:,}" if one.images else "", units.size(one.bytes), one.about)
    if len(doomed) > _SHOWN:
        table.add_row(f"and {len(doomed) - _SHOWN:,} more", "", "", "")
    return table


def _summary(doomed: list[Doomed]) -> str:
    kinds = {"jobs": 0, "exports": 0, "files": 0}
    for one in doomed:
        kinds["exports" if one.id.startswith("export_") else "files" if one.id.startswith("file-") else "jobs"] += 1
    words = [f"{number:,} {kind if number > 1 else kind[:-1]}" for kind, number in kinds.items() if number]
    images = sum(one.images for one in doomed)
    about = "about " if any(one.found.get("bytes_estimated") for one in doomed) else ""
    return f"{', '.join(words)}: {images:,} images, {about}{units.size(sum(one.bytes for one in doomed))}"


def agrees() -> bool:
    try:
        return typer.confirm("This cannot be undone. Delete?", err=True)
    except typer.Abort:
        raise Usage("There was no answer, so nothing was deleted; --yes deletes without a question.") from None


def _delete(client: Client, doomed: list[Doomed], as_json: bool) -> Exit:
    console, done, refused = show.err(), 0, 0
    bar = Progress(
        TextColumn("deleting"), BarColumn(20), MofNCompleteColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    try:
        with bar:
            for one in bar.track(doomed):
                try:
                    _verb(client, one.id)(one.id)
                except ClientError as error:
                    if error.status not in (404, 409):
                        raise
                    if error.status == 409:  # since it was looked at
                        refused += 1
                        show.say(f"{one.id} stays: {error.message}")
                        continue
                done += 1
                if as_json:
                    show.document({"id": one.id, "deleted": True})
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {done:,} of {len(doomed):,} are deleted") from None
    show.say(f"deleted {done:,}; the server frees the space in the background")
    return Exit.REFUSED if refused else Exit.OK


def _verb(client: Client, name: str) -> Callable[[str], object]:
    if name.startswith("export_"):
        return client.delete_export
    return client.delete_file if name.startswith("file-") else client.delete_job
