"""Acts on every job that matches, for `presswork cancel, pause, resume`: counts them, asks, and follows the act."""

import time
from typing import Annotated, Any

import typer

from presswork_client import Client, JobsAction
from services.cli import options, show, units
from services.cli.exits import Exit, Interrupted, Usage
from services.cli.profile import connect
from services.core.model.states import JobState

POLL_SECONDS = 0.5
Status = Annotated[
    list[JobState] | None,
    typer.Option("--status", help="Every job of this status; may be repeated.", show_default=False),
]
Label = Annotated[
    str | None, typer.Option("--label", metavar="NAME=VALUE", help="Every job with this label.", show_default=False)
]
Text = Annotated[
    str | None,
    typer.Option("--text", metavar="TEXT", help="Every job with this text in a label.", show_default=False),
]
All = Annotated[bool, typer.Option("--all", help="Every job.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def asked(status: list[JobState] | None, label: str | None, text: str | None, every: bool) -> dict[str, Any] | None:
    """The filter, if one is given. Raises Usage."""
    if not (status or label or text or every):
        return None
    pair = next(iter(options.pairs([label], "--label").items())) if label is not None else None
    found = {
        "status": [state.value for state in status] if status else None,
        "label": None if pair is None else ":".join(pair),
        "text": text,
    }
    return {name: value for name, value in found.items() if value is not None}


def act(
    verb: str, wanted: dict[str, Any], jobs: list[str] | None, profile: str | None, *, yes: bool, as_json: bool
) -> Exit:
    """Raises Usage."""
    if jobs:
        raise Usage("Give either ids of jobs, or --all, --status, --label or --text to choose them.")
    with connect(profile) as client:
        found = client.preview_jobs_action(verb, **wanted)
        about = "" if found["is_all"] else "at least "
        words = f"{about}{units.count(found['jobs'], 'job')}: {about}{units.count(found['images'], 'image')}"
        if not found["jobs"]:
            show.say(f"there is no job like that to {verb}")
            return Exit.OK
        show.say(f"{verb} touches {words}")
        if not yes and not _agrees(verb):
            show.say("nothing was changed")
            return Exit.FAILED
        return _follow(client, client.act_on_jobs(verb, **wanted), as_json)


def _follow(client: Client, found: JobsAction, as_json: bool) -> Exit:
    try:
        while found["status"] == "running":
            time.sleep(POLL_SECONDS)
            found = client.jobs_action(found["id"])
    except KeyboardInterrupt:
        raise Interrupted(f"the server goes on with {found['id']}; the dashboard shows and stops it") from None
    if as_json:
        show.document(found)
    show.say(
        f"done to {units.count(found['done'], 'job')}" + (", then stopped" if found["status"] == "stopped" else "")
    )
    for reason in found["reasons"]:
        show.say(f"{reason['job_id']} stays: {reason['message']}")
    return Exit.REFUSED if found["lost"] or found["status"] == "stopped" else Exit.OK


def _agrees(verb: str) -> bool:
    try:
        return typer.confirm(f"{verb.capitalize()} them?", err=True)
    except typer.Abort:
        raise Usage("There was no answer, so nothing was changed; --yes does it without a question.") from None
