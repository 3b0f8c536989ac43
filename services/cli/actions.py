"""`presswork actions`: who changed what."""

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer

from services.cli import completion, options, show
from services.cli.exits import guarded
from services.cli.profile import connect


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("actions", rich_help_panel=panel)(guarded(actions))


def actions(
    actor: Annotated[
        str | None,
        typer.Option(metavar="ACTOR", help="What one actor did: key/ID, cli/USER, scheduler, ...", show_default=False),
    ] = None,
    verb: Annotated[
        str | None,
        typer.Option(metavar="VERB", help="One kind of act: job.created, key.revoked, ...", show_default=False),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(metavar="JOB", help="Acts about one job.", show_default=False, autocompletion=completion.job_ids),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGE", help="Not longer ago than 12h, 30d, 8w.", show_default=False)
    ] = None,
    limit: options.Limit = 50,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """List who changed what, newest first."""
    first = None if since is None else (datetime.now(UTC) - options.span(since, "--since")).isoformat()
    with connect(profile) as client:
        page = min(limit + 1, 1000) if limit else 1000
        found = client.actions(actor=actor, verb=verb, job_id=job, since=first, page=page)
        if as_json:
            for action in islice(found, limit or None):
                show.document(action)
            return
        shown = list(islice(found, limit or None))
        more = bool(limit) and next(found, None) is not None
    if shown:
        show.render(show.actions(shown))
    else:
        show.say("nobody has done such a thing")
    if more:
        show.say(f"there are more; --limit {limit * 10} shows them", style="dim")
