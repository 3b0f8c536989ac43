"""`presswork catalogue plan` and `run`: uploads the source if it is a file, begins a run and follows it to its end."""

import re
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from presswork_client import Catalogue, CatalogueRun, Client, Job
from services.cli import catalogue_tables, follow, options, show, units
from services.cli.exits import Exit, Interrupted, Usage
from services.cli.profile import connect

_UPLOADED = re.compile(r"file-[0-9a-z]{13}")
_SHOWN_PROBLEMS = 10
_PATIENCE_SECONDS = 60.0
_LOOKED_AT = 20  # runs, for the one that goes on
_REVIEWED = ("changed", "model", "retried")  # kinds of changes that a review is about
_AT_ONCE = 1_000  # pictures that one request draws again
_GOOD = ("planned", "unchanged", "published")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The catalogue's name.", show_default=False)]
Folder = Annotated[
    Path,
    typer.Option(
        "--from", metavar="DIR", help="Where source.file is, if it is a path: the folder of the catalogue's file."
    ),
]


def plan(
    name: Name,
    folder: Folder = Path(),
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Show what a run would do, and how long it would take. Nothing is rendered or published.

    A source that is a file is uploaded first, unless the last upload has the same bytes.
    """
    with connect(profile, _PATIENCE_SECONDS) as client:
        upload(client, client.catalogue(name), folder)
        found = _follow(client, client.run_catalogue(name, plan_only=True), as_json=False)
        estimate = client.estimate_catalogue_run(name, found["id"]) if found["state"] == "planned" else None
        if as_json:
            show.document(found | {"estimate": estimate} | _all_problems(client, found))
        else:
            show.render(catalogue_tables.report(found, estimate))
            _problems(client, found)
    return _code(found)


def run(
    name: Name,
    folder: Folder = Path(),
    accept_removed: Annotated[
        bool, typer.Option("--accept-removed", help="Remove more items than removed_limit allows.")
    ] = False,
    deadline: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When it writes what there is, such as 2027-01-31T06:00:00Z.", show_default=False
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start it and return.")] = False,
    key: options.Key = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Render what is new or changed, and publish the whole as a new version if the rules allow it.

    Exit code 7: the version before stays, and the report says why. If this is interrupted, the run goes on.
    """
    asked: dict[str, Any] = {"accept_removed": accept_removed} | ({} if deadline is None else {"deadline": deadline})
    with connect(profile, _PATIENCE_SECONDS) as client:
        upload(client, client.catalogue(name), folder)
        made = client.run_catalogue(name, idempotency_key=key, **asked)
        if no_wait:
            show.document(made) if as_json else show.say(f"{made['id']} has begun; {_look(name)} shows it")
            return Exit.OK
        found = _follow(client, made, as_json)
        if as_json:
            show.document(found | _all_problems(client, found))
        else:
            show.render(catalogue_tables.report(found))
            _problems(client, found)
    return _code(found)


def redraw(
    name: Name,
    items: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ITEM]...", help="Ids of items whose changed pictures are drawn again.", show_default=False
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only pictures of this variant.", show_default=False)
    ] = None,
    rejected: Annotated[bool, typer.Option("--rejected", help="All that are marked as rejected.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Draw pictures of the run under review again, each with another seed. The review waits for the new ones."""
    if bool(items) == rejected:
        raise Usage("Name the items to draw again, or give --rejected.")
    wanted = set(items or ())
    with connect(profile) as client:
        going = islice(client.catalogue_runs(name, page=_LOOKED_AT), _LOOKED_AT)
        found = next((one for one in going if one["state"] == "reviewing"), None)
        if found is None:
            raise Usage(f"No run of {name} is under review.")
        chosen = [
            one for one in client.catalogue_changes(name, found["id"])
            if one["kind"] in _REVIEWED and variant in (None, one["variant"])
            and (one["item"] in wanted or (rejected and one["mark"] == "rejected"))
        ]  # fmt: skip
        missing = sorted(wanted - {one["item"] for one in chosen})
        if missing:
            raise Usage(f"{missing[0]} has no changed picture in the review of {name}; nothing was drawn again.")
        for first in range(0, len(chosen), _AT_ONCE):
            part = chosen[first : first + _AT_ONCE]
            indexes = [index for one in part if (index := one["index"]) is not None]
            made = client.redraw_catalogue_changes(name, found["id"], indexes)
            said = f"{made['id']} draws {units.count(len(part), 'picture')} again; the review waits for a mark of each"
            show.document(made) if as_json else show.say(said)
    if not chosen:
        show.say("no changed picture is rejected")
    return Exit.OK


def cancel(name: Name, profile: options.ProfileName = None, as_json: options.Json = False) -> Exit:
    """Cancel the run that goes on, with its job. What is published stays."""
    with connect(profile) as client:
        going = [
            one for one in islice(client.catalogue_runs(name, page=_LOOKED_AT), _LOOKED_AT) if not one["finished_at"]
        ]
        for one in going:
            found = client.cancel_catalogue_run(name, one["id"])
            show.document(found) if as_json else show.say(f"{found['id']} is being cancelled")
    if not going:
        show.say(f"no run of {name} goes on")
    return Exit.OK


def upload(client: Client, catalogue: Catalogue, folder: Path) -> None:
    """Uploads the source, if it is a file of this machine. Raises Usage if it is not there and never was uploaded."""
    given = catalogue["definition"]["source"].get("file")
    if given is None or _UPLOADED.fullmatch(given):
        return
    path = folder / given
    if not path.is_file():
        if catalogue["file_id"] is None:
            raise Usage(f"source.file is {given}, and there is no {path}; --from names the folder that it is in.")
        show.say(f"there is no {path}, so the last upload is read; --from names the folder of {given}")
        return
    found = client.upload_to_catalogue(catalogue["name"], path)
    told = "as uploaded before" if found["file_id"] == catalogue["file_id"] else "uploaded"
    show.say(f"{given}: {told} ({found['file_id']})", style="dim")


def _follow(client: Client, made: CatalogueRun, as_json: bool) -> CatalogueRun:
    """Follows a run to its end: a bar on a terminal, lines in a log, a line of JSON for every state but the last."""
    found, seen = made, ""
    try:
        with follow.bar() as progress:
            task = progress.add_task(made["state"], total=None, tail="")
            for found, job in _polls(client, made):
                counts = job["counts"] if job else {"total": 0, "done": 0, "failed": 0, "cancelled": 0}
                final = counts["done"] + counts["failed"] + counts["cancelled"]
                tail = f"{counts['failed']:,} failed" if counts["failed"] else ""
                progress.update(
                    task, description=found["state"], completed=final, total=counts["total"] or None, tail=tail
                )
                if found["state"] != seen:
                    seen = found["state"]
                    _tell(found, as_json)
    except KeyboardInterrupt:
        name = made["catalogue"]
        said = f"the run goes on; {_look(name)} shows it, `presswork catalogue cancel {name}` stops it"
        raise Interrupted(said) from None
    return found


def _tell(found: CatalogueRun, as_json: bool) -> None:
    if as_json:
        if not found["finished_at"]:
            show.document(found)
    elif found["state"] == "reviewing":
        waiting = found["counts"]["to_review"]
        show.say(
            f"{waiting:,} changed pictures of {found['job_id']} wait for a person: `presswork mark` or the dashboard"
        )
    elif not sys.stderr.isatty() and not found["finished_at"]:
        show.say(f"{found['id']} is {found['state']}")


def _polls(client: Client, made: CatalogueRun) -> Iterator[tuple[CatalogueRun, Job | None]]:
    """The run and its job while it renders, until the run has ended."""
    for found in follow.through_outages(lambda: _states(client, made)):
        is_rendering = found["state"] in ("submitting", "rendering") and found["job_id"] is not None
        yield found, client.job(str(found["job_id"])) if is_rendering else None


def _states(client: Client, made: CatalogueRun) -> Iterator[CatalogueRun]:
    while True:
        found = client.catalogue_run(made["catalogue"], made["id"])
        yield found
        if found["finished_at"]:
            return
        time.sleep(follow.POLL_SECONDS)


def _all_problems(client: Client, run: CatalogueRun) -> dict[str, Any]:
    return {"problems": list(client.catalogue_changes(run["catalogue"], run["id"], troubled=True))}


def _problems(client: Client, run: CatalogueRun) -> None:
    page = _SHOWN_PROBLEMS + 1
    found = list(islice(client.catalogue_changes(run["catalogue"], run["id"], troubled=True, page=page), page))
    if found:
        show.render(catalogue_tables.problems(found[:_SHOWN_PROBLEMS], len(found) > _SHOWN_PROBLEMS))


def _code(found: CatalogueRun) -> Exit:
    return Exit.OK if found["state"] in _GOOD else Exit.NOT_PUBLISHED


def _look(name: str) -> str:
    return f"`presswork catalogue show {name}`"
