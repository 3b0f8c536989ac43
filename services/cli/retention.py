"""`presswork retention`: for how long jobs keep their prompts, images and records, and what goes next."""

from typing import Annotated

import typer
from rich.table import Table

from presswork_client import RetentionDue, RetentionRule
from services.cli import options, show
from services.cli.exits import Usage, guarded
from services.cli.profile import connect

app = typer.Typer(no_args_is_help=True, help="How long jobs keep their prompts, images and records.")
_KINDS = ("payloads", "objects", "records")
_SHOWN = 20


def show_rule(
    within: Annotated[
        str | None, typer.Option("--within", metavar="AGE", help="Also what goes within 30d, 8w, 1y.")
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Show for how long jobs keep what, and what would go next. Deletes nothing."""
    days = 0 if within is None else options.days(within, "--within") or 0
    with connect(profile) as client:
        rule, due = client.retention(), client.retention_due(within_days=days)
    if as_json:
        show.document({**rule, "due": due["data"], "more": due["more"]})
        return
    _say(rule)
    if not due["data"]:
        show.say("nothing is due" if within is None else f"nothing is due within {within}")
        return
    show.render(_table(due["data"][:_SHOWN]))
    if due["more"] or len(due["data"]) > _SHOWN:
        show.say("there are more; --json lists a thousand", style="dim")


def set_rule(
    payloads: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="Prompts, metadata and input pictures: 30d, 8w, 1y or never.", show_default=False
        ),
    ] = None,
    objects: Annotated[
        str | None, typer.Option(metavar="AGE", help="Images, exports and output files.", show_default=False)
    ] = None,
    records: Annotated[
        str | None, typer.Option(metavar="AGE", help="Everything, the job itself included.", show_default=False)
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Set for how long after its end a job keeps what. "never" deletes nothing.

    It holds for jobs that have ended already, too. What is gone cannot be restored: `presswork retention show
    --within 30d` says beforehand what a rule takes. A job's own `submit --keep` comes first. Needs a key with the
    scope admin.
    """
    given = {"payloads": payloads, "objects": objects, "records": records}
    changes = {kind: options.days(word, f"--{kind}") for kind, word in given.items() if word is not None}
    if not changes:
        raise Usage("Give at least one of --payloads, --objects and --records.")
    with connect(profile) as client:
        rule = client.set_retention(changes)
    if as_json:
        show.document(rule)
    else:
        _say(rule)


def _say(rule: RetentionRule) -> None:
    words = {"payloads": rule["payloads"], "objects": rule["objects"], "records": rule["records"]}
    for kind in _KINDS:
        days = words[kind]
        show.render(f"{kind:<9} {'kept for ever' if days is None else f'kept for {days:,} days after the job ended'}")


def _table(found: list[RetentionDue]) -> Table:
    table = Table("JOB", "GOES", "SINCE", "IMAGES", "HELD BY", box=None, header_style="dim", pad_edge=False)
    for one in found:
        table.add_row(one["job_id"], one["kind"], one["due_at"][:10], f"{one['images']:,}", one["held_by"] or "")
    return table


app.command("show")(guarded(show_rule))
app.command("set")(guarded(set_rule))
