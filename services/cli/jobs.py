"""`presswork ls, show, watch, items, cancel, pause, resume, prioritize, retry, models`: follows and controls jobs."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

import typer

from presswork_client import Client, Job
from services.cli import bulk, choosing, completion, follow, options, show, units
from services.cli.choosing import Chosen
from services.cli.exits import Exit, Usage, guarded
from services.cli.profile import connect
from services.core.model import job_words

T = TypeVar("T")
_Status = Literal[
    "unfinished", "draft", "validating", "queued", "in_progress", "finalizing", "cancelling", "completed", "failed",
    "cancelled", "expired"
]  # fmt: skip
_RETRY_LABEL = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="NAME=VALUE",
        help="With this label. With JOB: a label of the new job; may be repeated.",
        show_default=False,
        rich_help_panel=choosing.PANEL,
    ),
]
_RETRY_PRIORITY = Annotated[
    Literal["high", "normal", "low"] | None,
    typer.Option(
        "--priority",
        help="Of this priority. With JOB: of the new job.",
        show_default=False,
        rich_help_panel=choosing.PANEL,
    ),
]
_RequestStatus = Literal["failed", "rendering", "queued", "cancelled", "done"]


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the commands of this file."""
    commands: dict[str, Callable[..., Any]] = {
        "ls": list_jobs, "show": show_jobs, "watch": watch, "items": items,
        "cancel": choosing.choosing(cancel), "pause": choosing.choosing(pause), "resume": choosing.choosing(resume),
        "prioritize": choosing.choosing(prioritize),
        "retry": choosing.choosing(retry, label=_RETRY_LABEL, of_priority=_RETRY_PRIORITY), "models": models,
    }  # fmt: skip
    for name, verb in commands.items():
        app.command(name, rich_help_panel=panel)(guarded(verb))


def list_jobs(
    status: Annotated[_Status | None, typer.Option(help="Only jobs of this status.", show_default=False)] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with this label.", show_default=False)
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="Only jobs with this text in a label.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Only jobs that render with this model.", show_default=False),
    ] = None,
    priority: Annotated[
        Literal["high", "normal", "low"] | None, typer.Option(help="Only jobs of this priority.", show_default=False)
    ] = None,
    submitted_by: Annotated[
        str | None,
        typer.Option(
            "--submitted-by",
            metavar="KEY",
            help="Only those submitted by the key of this name or id.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="WHEN",
            help="Submitted since: 2h, 30m or 7d ago, a day (UTC) or a moment.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="WHEN", help="Submitted until; a day is included.", show_default=False),
    ] = None,
    sort: Annotated[Literal["newest", "oldest", "failed_first"], typer.Option(help="The order.")] = "newest",
    view: Annotated[
        str | None,
        typer.Option(
            "--view",
            metavar="ADDRESS",
            help="All of these as the address of a list in the dashboard says them.",
            show_default=False,
        ),
    ] = None,
    limit: options.Limit = 20,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """List jobs: all, or those that match all that is given."""
    pair = ":".join(next(iter(options.pairs([label], "--label").items()))) if label else None
    given = {
        "status": status, "label": pair, "q": text, "model": model, "priority": priority, "who": submitted_by,
        "since": since, "until": until, "sort": None if sort == "newest" else sort,
    }  # fmt: skip
    wanted = {name: value for name, value in given.items() if value is not None}
    if view is not None:
        if wanted:
            raise Usage("Give either --view or the options of which it is made.")
        wanted = _of_view(view)
    with connect(profile) as client:
        found = client.jobs(**wanted, page=_page(limit, 1000))
        if as_json:
            for job in _up_to(limit, found):
                show.document(job)
            return
        shown = list(_up_to(limit, found))
        more = bool(limit) and next(found, None) is not None
    if shown:
        show.render(show.jobs(shown))
    else:
        show.say("there are no jobs" + (" like that" if wanted else " yet; `presswork submit` makes one"))
    if more:
        show.say(f"there are more; --limit {limit * 10} shows them", style="dim")


def show_jobs(jobs: options.JobIds, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Show the state of jobs and their events."""
    with connect(profile) as client:
        for number, job in enumerate(jobs):
            if as_json:
                show.document(client.job(job))
                continue
            if number:
                show.render("")
            show.render(show.job(client.job(job)))
            show.render(show.timeline(client.events(job)))


def watch(job: options.JobId, profile: options.ProfileName = None, as_json: options.Json = False) -> Exit:
    """Follow a job until it ends.

    With --json it prints a line for every change. Exit code 3: images failed or were not made.
    """
    with connect(profile) as client:
        return follow.job(client, job, as_json)


def items(
    job: options.JobId,
    status: Annotated[
        _RequestStatus | None, typer.Option(help="Only requests of this status.", show_default=False)
    ] = None,
    limit: options.Limit = 50,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """List a job's requests, failed ones first."""
    with connect(profile) as client:
        found = client.requests(job, status, page=_page(limit, 100))
        if as_json:
            for item in _up_to(limit, found):
                show.document(item)
            return
        shown = list(_up_to(limit, found))
        more = bool(limit) and next(found, None) is not None
    if shown:
        show.render(show.items(shown))
    else:
        show.say(f"no request of {job} is {status}" if status else f"{job} has no requests yet")
    if more:
        show.say(f"there are more; --limit {limit * 10} shows them, --status only some", style="dim")


def cancel(
    chosen: Chosen,
    jobs: options.JobIdsOrNone = None,
    except_running: Annotated[bool, typer.Option("--except-running", help="All but jobs in progress.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Cancel jobs, named or all that match. Finished images stay; nothing more is rendered."""
    more = {"except_running": True} if except_running else {}
    return _each(
        "cancel", lambda client, job: client.cancel(job), chosen, jobs, profile, as_json=as_json, is_any=except_running,
        **more,
    )  # fmt: skip


def pause(
    chosen: Chosen,
    jobs: options.JobIdsOrNone = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Pause jobs, named or all that match. Images being rendered finish; no others begin."""
    return _each("pause", lambda client, job: client.pause(job), chosen, jobs, profile, as_json=as_json)


def resume(
    chosen: Chosen,
    jobs: options.JobIdsOrNone = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Resume paused jobs, named or all that match.

    (To resume an interrupted submission, use `submit --resume`.)
    """
    return _each("resume", lambda client, job: client.resume(job), chosen, jobs, profile, as_json=as_json)


def prioritize(
    chosen: Chosen,
    priority: Annotated[
        Literal["high", "normal", "low"], typer.Argument(metavar="high|normal|low", help="The new one.")
    ],
    jobs: options.JobIdsOrNone = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Give jobs another priority, named or all that match. Higher ones are rendered first."""
    return _each(
        "prioritize", lambda client, job: client.change(job, priority=priority), chosen, jobs, profile,
        as_json=as_json, priority=priority,
    )  # fmt: skip


def retry(
    chosen: Chosen,
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB", help="A job's id: job_...", show_default=False, autocompletion=completion.job_ids
        ),
    ] = None,
    include_cancelled: Annotated[bool, typer.Option("--include-cancelled", help="Also cancelled images.")] = False,
    cause: Annotated[
        str | None, typer.Option(metavar="CODE", help="Only images that failed for this cause.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the new job until it ends.")] = False,
    key: options.Key = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Render the failed images again, as a new job: those of a job, or of all jobs that match.

    Prompts, seeds and custom_ids are the same; the old job is not changed.
    """
    options_of_one = {"--cause": cause, "--watch": watch, "--idempotency-key": key}
    if job is None:
        if wrong := [name for name, value in options_of_one.items() if value]:
            raise Usage(f"{wrong[0]} goes with one job: presswork retry JOB {wrong[0]} ...")
        if not chosen.given():
            raise Usage(choosing.HINT)
        more: dict[str, Any] = {"include_cancelled": True} if include_cancelled else {}
        return bulk.act("retry", chosen, profile, as_json=as_json, **more)
    if set(chosen.given()) - {"label", "of_priority"} or chosen.dry_run:
        raise Usage("With a job's id, retry takes --label and --priority for the new job, and chooses no others.")
    given = {"include_cancelled": include_cancelled or None, "cause": cause, "priority": chosen.of_priority}
    given["labels"] = options.pairs(chosen.label, "--label") or None  # type: ignore[assignment]
    asked = {name: value for name, value in given.items() if value is not None}
    with connect(profile) as client:
        made = client.retry(job, idempotency_key=key, **asked)
        if watch:
            show.say(f"{made['id']} retries {units.count(made['counts']['total'], 'image')}")
            return follow.job(client, made["id"], as_json)
    _print(made, as_json)
    return Exit.OK


def models(profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List the models that requests can name.

    Shown are sizes (the default in bold), default and maximum steps, and the number of live workers.
    """
    with connect(profile) as client:
        found = client.models()
    if as_json:
        show.document(found)
    elif found:
        show.render(show.models(found))
    else:
        show.say("no model is registered; a worker that serves one does so")


def _each(
    verb: str,
    one: Callable[[Client, str], Job],
    chosen: Chosen,
    jobs: list[str] | None,
    profile: str | None,
    *,
    as_json: bool,
    is_any: bool = False,
    **more: Any,
) -> Exit:
    """Does it to the jobs that are named, or to all that match; `is_any`: to any, if nothing is said. Raises Usage."""
    if not jobs and not chosen.given() and not is_any:
        raise Usage(choosing.HINT)
    if not jobs:
        return bulk.act(verb, chosen, profile, as_json=as_json, **more)
    if chosen.given() or chosen.dry_run or is_any:
        raise Usage("Give either ids of jobs or options that choose them.")
    with connect(profile) as client:
        for number, job in enumerate(jobs):
            if number and not as_json:
                show.render("")
            _print(one(client, job), as_json)
    return Exit.OK


def _print(job: Job, as_json: bool) -> None:
    if as_json:
        show.document(job)
    else:
        show.render(show.job(job))


def _of_view(address: str) -> dict[str, str]:
    """What the address of a list asks for. Raises Usage."""
    parts = urlsplit(address)
    wanted = {name: value for name, value in parse_qsl(parts.query) if name != "cursor"}
    if parts.path.rsplit("/", 1)[-1] not in ("jobs", "") or set(wanted) - {*job_words.WORDS, "sort"}:
        raise Usage(f"--view is {address!r}; it must be the address of the dashboard's list of jobs.")
    return wanted


def _up_to(limit: int, found: Iterable[T]) -> Iterator[T]:
    return islice(found, limit or None)


def _page(limit: int, maximum: int) -> int:
    """The page size: one more than is shown, to know whether there are more."""
    return min(limit + 1, maximum) if limit else maximum
