"""`presswork catalogue`: feeds of items whose pictures are kept up to date, and published as a whole."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from presswork_client import Catalogue, Client, ClientError
from services.cli import catalogue_runs, catalogue_tables, options, removal, show, units
from services.cli.catalogue_runs import Name
from services.cli.exits import BadInput, Exit, Usage, guarded
from services.cli.profile import connect
from services.core.catalogues import definition_file
from services.core.catalogues.definition_file import BadFile
from services.core.schedules import definition_times

app = typer.Typer(
    no_args_is_help=True,
    help="Keep the pictures of a feed's items up to date, and publish them whole. A variant draws each item by its "
    "prompt, or, with `image` and `strength`, redraws the item's own photograph.",
)
_RUNS = 10


def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The catalogues, as TOML, YAML or JSON.", show_default=False)
    ],
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Make catalogues, or give them another definition.

    A source.file, relative to the folder of FILE, is uploaded. What is published stays until a run makes another
    version.
    """
    try:
        given = definition_file.read(file.name, file.read_bytes())
    except BadFile as error:
        raise BadInput(str(error), []) from None
    _check_schedules(given)
    with connect(profile) as client:
        for name, definition in given.items():
            before = _catalogue(client, name)
            made = _put(client, name, definition)
            catalogue_runs.upload(client, made, file.parent)
            if as_json:
                show.document(client.catalogue(name))
            else:
                same = before is not None and before["definition"] == made["definition"]
                show.say(f"{name} is {'made' if before is None else 'as it was' if same else 'changed'}")
    return Exit.OK


def ls(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A catalogue; none: list them.", show_default=False)
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="A kept version.", show_default=False)] = None,
    limit: options.Limit = 50,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """List the catalogues, or the pictures of one: of the published version or another."""
    with connect(profile) as client:
        if name is None:
            _print(client.catalogues(), catalogue_tables.catalogues, limit, as_json, "there are no catalogues yet")
        else:
            page = min(limit + 1, 1000) if limit else 1000
            found = client.catalogue_items(name, version, page=page)
            _print(found, catalogue_tables.items, limit, as_json, "the version has no pictures")


def versions(name: Name, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List the versions that are kept, newest first."""
    with connect(profile) as client:
        found = iter(client.catalogue_versions(name))
    _print(found, catalogue_tables.versions, 0, as_json, f"{name} has no version yet; `presswork catalogue run {name}`")


def diff(
    name: Name,
    before: Annotated[
        int | None,
        typer.Option("--from", min=1, help="The one before, if not the version before the other.", show_default=False),
    ] = None,
    after: Annotated[
        int | None, typer.Option("--to", min=1, help="The other one, if not the published.", show_default=False)
    ] = None,
    limit: options.Limit = 50,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Show where the pictures of two kept versions differ."""
    with connect(profile) as client:
        to = after if after is not None else _published(client, name)
        begin = before if before is not None else _before(client, name, to)
        if not as_json:
            show.say(f"from version {begin} to version {to}", style="dim")
        page = min(limit + 1, 1000) if limit else 1000
        found = client.catalogue_diff(name, begin, to, page=page)
        _print(found, catalogue_tables.differences, limit, as_json, "their pictures are the same")


def publish(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="A kept version.", show_default=False)],
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Publish a kept version: readers see all of it at once."""
    with connect(profile) as client:
        _tell(client.publish(name, version), as_json)


def rollback(
    name: Name,
    to: Annotated[
        int | None, typer.Option("--to", min=1, help="A kept version, if not the one before.", show_default=False)
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Publish the version before the published one, or another that is kept."""
    with connect(profile) as client:
        version = to if to is not None else _before(client, name, _published(client, name))
        _tell(client.publish(name, version), as_json)


def show_catalogue(name: Name, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Show a catalogue and its last runs."""
    with connect(profile) as client:
        found = client.catalogue(name)
        runs = list(islice(client.catalogue_runs(name, page=_RUNS), _RUNS))
        if as_json:
            show.document(found | {"runs": runs})
            return
        show.render(catalogue_tables.catalogue(found))
        if runs:
            show.render("")
            show.render(catalogue_tables.runs(runs))
        else:
            show.say(f"it has not run yet; `presswork catalogue plan {name}` shows what a run would do", style="dim")


def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Delete a catalogue with its versions and their pictures. It cannot be restored."""
    with connect(profile) as client:
        kept = client.catalogue_versions(name)
        images = max((one["images"] for one in kept), default=0)
        show.say(f"deletes {name}: {units.count(len(kept), 'version')} of up to {units.count(images, 'image')}")
        if not yes and not removal.agrees():
            show.say("nothing was deleted")
            return Exit.FAILED
        client.delete_catalogue(name)
    if as_json:
        show.document({"name": name, "deleted": True})
    else:
        show.say(f"{name} is deleted; the server frees the space in the background")
    return Exit.OK


_COMMANDS: dict[str, Callable[..., Any]] = {
    "apply": apply, "plan": catalogue_runs.plan, "run": catalogue_runs.run, "cancel": catalogue_runs.cancel,
    "redraw": catalogue_runs.redraw, "ls": ls,
    "versions": versions, "diff": diff, "publish": publish, "rollback": rollback, "show": show_catalogue, "rm": rm,
}  # fmt: skip
for _name, _verb in _COMMANDS.items():
    app.command(_name)(guarded(_verb))


def _catalogue(client: Client, name: str) -> Catalogue | None:
    try:
        return client.catalogue(name)
    except ClientError as error:
        if error.status == 404:
            return None
        raise


def _check_schedules(given: dict[str, Any]) -> None:
    """Raises BadInput before any catalogue of the file is changed. The server checks the rest, one after the other."""
    found = [
        {"code": one.code, "message": f"{name}: {one.message}", "param": f"catalogue.{name}.{one.param}"}
        for name, definition in given.items()
        if isinstance(definition, dict)
        for one in definition_times.problems(definition)
    ]
    if found:
        raise BadInput("refused: when it runs is not as it must be; nothing was changed", found)


def _put(client: Client, name: str, definition: dict[str, Any]) -> Catalogue:
    """Raises BadInput with every problem of the definition."""
    try:
        return client.put_catalogue(name, definition)
    except ClientError as error:
        if not error.errors:
            raise
        raise BadInput(
            f"refused: the catalogue {name} is not as it must be; nothing of it was changed", error.errors
        ) from None


def _published(client: Client, name: str) -> int:
    found = client.catalogue(name)["published"]
    if found is None:
        raise Usage(f"No version of {name} is published yet.")
    return found


def _before(client: Client, name: str, version: int) -> int:
    """The kept version before that one."""
    older = [one["version"] for one in client.catalogue_versions(name) if one["version"] < version]
    if not older:
        raise Usage(f"No version before version {version} is kept; `presswork catalogue versions {name}` lists them.")
    return max(older)


def _print(found: Any, table: Any, limit: int, as_json: bool, nothing: str) -> None:
    if as_json:
        for one in islice(found, limit or None):
            show.document(one)
        return
    shown = list(islice(found, limit or None))
    if shown:
        show.render(table(shown))
    else:
        show.say(nothing)
    if limit and next(found, None) is not None:
        show.say(f"there are more; --limit {limit * 10} shows them", style="dim")


def _tell(found: Catalogue, as_json: bool) -> None:
    if as_json:
        show.document(found)
    else:
        show.say(f"version {found['published']} of {found['name']} is published")
