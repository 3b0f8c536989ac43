"""`presswork open`: opens the dashboard in the browser, signed in."""

import webbrowser
from typing import Annotated, Any
from urllib.parse import quote

import typer

from services.cli import completion, options, show
from services.cli.exits import guarded
from services.cli.profile import connect


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("open", rich_help_panel=panel)(guarded(open_dashboard))


def open_dashboard(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB", help="The job to show; without, the overview.", show_default=False,
            autocompletion=completion.job_ids,
        ),
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the address and open no browser.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Any:  # fmt: skip
    """Open the dashboard in the browser, signed in.

    The address is good for one sign-in within two minutes. It holds no key.
    """
    with connect(profile) as client:
        link = client.create_sign_in_link(next=None if job is None else f"/jobs/{quote(job, safe='')}")
    if as_json:
        show.document(link)
    elif only_print:
        show.render(link["url"])
    elif not webbrowser.open(link["url"]):
        show.say("no browser opens here; this address is good for one sign-in within two minutes:")
        show.render(link["url"])
