"""Acts on every job that matches: what they touch, the question, how far the server is; and `presswork bulk`, which
lists, follows and stops them."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

from presswork_client import Client, JobsAction
from services.cli import follow, options, show, units
from services.cli.choosing import Chosen
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.profile import connect

POLL_SECONDS = 0.5
_LINE_SECONDS = 10.0  # between lines in a log
_TOUCHES = {
    "cancel": "cancels {jobs}: {images} not done yet",
    "pause": "pauses {jobs}: {images} waiting",
    "resume": "resumes {jobs}: {images} waiting",
    "retry": "retries {jobs}: {images} to be rendered again, in new jobs",
    "prioritize": "gives {jobs} the priority {priority}: {images} waiting",
    "delete": "deletes {jobs}: {images}",
}
_QUESTIONS = {"delete": "This cannot be undone. Delete them?", "prioritize": "Change them?"}
_DONE = {
    "cancel": "cancelled", "pause": "paused", "resume": "resumed", "retry": "retried", "prioritize": "changed",
    "delete": "deleted",
}  # fmt: skip
ActId = Annotated[str, typer.Argument(metavar="ACT", help="An act's id: bulk_...", show_default=False)]
app = typer.Typer(no_args_is_help=True, help="Acts on many jobs at once: list, follow, stop.")


def act(
    verb: str, chosen: Chosen, profile: str | None, *, as_json: bool, wanted: dict[str, Any] | None = None, **more: Any
) -> Exit:
    """Says what it touches, asks, and follows it to its end. `wanted` is the filter, if it is not as chosen; `more` are
    the verb's options. Raises Usage."""
    asked = (chosen.wanted() if wanted is None else wanted) | more
    with connect(profile) as client:
        found = client.preview_jobs_action(verb, **asked)
        if as_json and chosen.dry_run:
            show.document(found)
        if not found["jobs"]:
            show.say(f"there is no job like that to {verb}")
            return Exit.OK
        least = "" if found["is_all"] else "at least "
        jobs = f"{least}{units.count(found['jobs'], 'job')}"
        images = f"{least}{units.count(found['images'], 'image')}"
        words = _TOUCHES[verb].format(jobs=jobs, images=images, priority=more.get("priority"))
        show.say(f"a dry run: it {words}" if chosen.dry_run else words)
        if chosen.dry_run:
            return Exit.OK
        if not chosen.yes and not _agrees(verb):
            show.say("nothing was changed")
            return Exit.FAILED
        return _followed(client, client.act_on_jobs(verb, **asked)["id"], as_json)


def _agrees(verb: str) -> bool:
    try:
        return typer.confirm(_QUESTIONS.get(verb, f"{verb.capitalize()} them?"), err=True)
    except typer.Abort:
        raise Usage("There was no answer, so nothing was changed; --yes does it without a question.") from None


def _followed(client: Client, act_id: str, as_json: bool) -> Exit:
    """Follows an act to its end, and says what became of it."""
    said = 0.0
    try:
        with follow.bar() as progress:
            task = progress.add_task("", total=None, tail="")
            for found in follow.through_outages(lambda: _polls(client, act_id)):
                through = found["done"] + found["lost"]
                total = found["jobs"] if found["is_all"] else None
                tail = f"{found['lost']:,} refused" if found["lost"] else ""
                progress.update(task, description=found["action"], completed=through, total=total, tail=tail)
                now = time.monotonic()
                if progress.disable and found["status"] == "running" and now - said >= _LINE_SECONDS:
                    show.say(f"{act_id}: {through:,} of {found['jobs']:,} jobs")
                    said = now
    except KeyboardInterrupt:
        raise Interrupted(
            f"the server goes on in the background: `presswork bulk watch {act_id}` follows it, "
            f"`presswork bulk stop {act_id}` stops it"
        ) from None
    return _ended(found, as_json)


def _polls(client: Client, act_id: str) -> Iterator[JobsAction]:
    while True:
        found = client.jobs_action(act_id)
        yield found
        if found["status"] != "running":
            return
        time.sleep(POLL_SECONDS)


def _ended(found: JobsAction, as_json: bool) -> Exit:
    if as_json:
        show.document(found)
    words = f"{_DONE[found['action']]} {units.count(found['done'], 'job')}"
    if found["status"] == "stopped":
        words = f"stopped: {words} of {found['jobs']:,}"
    elif found["action"] == "delete" and found["done"]:
        words += "; the server frees the space in the background"
    show.say(words)
    for reason in found["reasons"]:
        show.say(f"{reason['job_id']} stays: {reason['message']}")
    if found["lost"] > len(found["reasons"]):
        show.say(f"and so do {found['lost'] - len(found['reasons']):,} more")
    return Exit.REFUSED if found["lost"] or found["status"] == "stopped" else Exit.OK


def list_acts(limit: options.Limit = 20, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List the acts on many jobs, newest first."""
    with connect(profile) as client:
        found = list(islice(client.jobs_actions(), limit or None))
    if as_json:
        for one in found:
            show.document(one)
    elif found:
        show.render(_table(found))
    else:
        show.say("nobody has acted on many jobs at once; `presswork cancel --help` says how")


def watch(act_id: ActId, profile: options.ProfileName = None, as_json: options.Json = False) -> Exit:
    """Follow an act until it ends. Exit code 5: some jobs were refused, or it was stopped."""
    with connect(profile) as client:
        return _followed(client, act_id, as_json)


def stop(act_id: ActId, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Stop an act. What it has done stays done."""
    with connect(profile) as client:
        found = client.stop_jobs_action(act_id)
    if as_json:
        show.document(found)
        return
    at = f"{found['done']:,} of {units.count(found['jobs'], 'job')}"
    show.say(f"stopped {act_id} after {at}" if found["status"] == "stopped" else f"{act_id} had ended: {at}")


def _table(found: list[JobsAction]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("ACT", "ACTION", "STATUS", "DONE", "OF", "REFUSED", "AGE"):
        table.add_column(name, justify="left" if name in ("ACT", "ACTION", "STATUS") else "right", no_wrap=True)
    for one in found:
        refused = f"{one['lost']:,}" if one["lost"] else ""
        jobs = f"{one['jobs']:,}" + ("" if one["is_all"] else "+")
        state = show.status(one["status"])
        table.add_row(one["id"], one["action"], state, f"{one['done']:,}", jobs, refused, units.age(one["created_at"]))
    return table


app.command("ls")(guarded(list_acts))
app.command()(guarded(watch))
app.command()(guarded(stop))
