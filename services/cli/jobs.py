"""`presswork ls, show, watch, items, cancel, pause, resume, retry, models`: follows and controls jobs."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

import typer

from presswork_client import Client, Job
from services.cli import bulk, follow, options, show, units
from services.cli.exits import Exit, Usage, guarded
from services.cli.profile import connect

T = TypeVar("T")
_Status = Literal[
    "draft", "validating", "queued", "in_progress", "finalizing", "cancelling", "completed", "failed", "cancelled",
    "expired"
]  # fmt: skip
_RequestStatus = Literal["failed", "rendering", "queued", "cancelled", "done"]


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the commands of this file."""
    commands: dict[str, Callable[..., Any]] = {
        "ls": list_jobs, "show": show_jobs, "watch": watch, "items": items, "cancel": cancel, "pause": pause,
        "resume": resume, "retry": retry, "models": models,
    }  # fmt: skip
    for name, verb in commands.items():
        app.command(name, rich_help_panel=panel)(guarded(verb))


def list_jobs(
    status: Annotated[_Status | None, typer.Option(help="Only jobs of this status.", show_default=False)] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with this label.", show_default=False)
    ] = None,
    limit: options.Limit = 20,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """List jobs, newest first."""
    wanted = ":".join(next(iter(options.pairs([label], "--label").items()))) if label else None
    with connect(profile) as client:
        found = client.jobs(status=status, label=wanted, page=_page(limit, 1000))
        if as_json:
            for job in _up_to(limit, found):
                show.document(job)
            return
        shown = list(_up_to(limit, found))
        more = bool(limit) and next(found, None) is not None
    if shown:
        show.render(show.jobs(shown))
    else:
        show.say("there are no jobs" + (" like that" if status or label else " yet; `presswork submit` makes one"))
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
    jobs: options.JobIdsOrNone = None,
    status: bulk.Status = None,
    label: bulk.Label = None,
    text: bulk.Text = None,
    every: bulk.All = False,
    except_running: Annotated[bool, typer.Option("--except-running", help="All but jobs in progress.")] = False,
    yes: bulk.Yes = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Cancel jobs, named or all that match. Finished images stay; nothing more is rendered."""
    wanted = bulk.asked(status, label, text, every or except_running)
    if wanted is None:
        return _each(jobs, profile, as_json, lambda client, job: client.cancel(job))
    more = {"except_running": True} if except_running else {}
    return bulk.act("cancel", wanted | more, jobs, profile, yes=yes, as_json=as_json)


def pause(
    jobs: options.JobIdsOrNone = None,
    status: bulk.Status = None,
    label: bulk.Label = None,
    text: bulk.Text = None,
    every: bulk.All = False,
    yes: bulk.Yes = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Pause jobs, named or all that match. Images being rendered finish; no others begin."""
    wanted = bulk.asked(status, label, text, every)
    if wanted is None:
        return _each(jobs, profile, as_json, lambda client, job: client.pause(job))
    return bulk.act("pause", wanted, jobs, profile, yes=yes, as_json=as_json)


def resume(
    jobs: options.JobIdsOrNone = None,
    status: bulk.Status = None,
    label: bulk.Label = None,
    text: bulk.Text = None,
    every: bulk.All = False,
    yes: bulk.Yes = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Resume paused jobs, named or all that match.

    (To resume an interrupted submission, use `submit --resume`.)
    """
    wanted = bulk.asked(status, label, text, every)
    if wanted is None:
        return _each(jobs, profile, as_json, lambda client, job: client.resume(job))
    return bulk.act("resume", wanted, jobs, profile, yes=yes, as_json=as_json)


def retry(
    job: options.JobId,
    include_cancelled: Annotated[bool, typer.Option("--include-cancelled", help="Also cancelled images.")] = False,
    cause: Annotated[
        str | None, typer.Option(metavar="CODE", help="Only images that failed for this cause.", show_default=False)
    ] = None,
    priority: options.Priority = None,
    label: options.Labels = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the new job until it ends.")] = False,
    key: options.Key = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Render the failed images again, as a new job.

    Prompts, seeds and custom_ids are the same; the old job is not changed.
    """
    given = {"include_cancelled": include_cancelled or None, "cause": cause, "priority": priority}
    given["labels"] = options.pairs(label, "--label") or None  # type: ignore[assignment]
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


def _each(jobs: list[str] | None, profile: str | None, as_json: bool, verb: Callable[[Client, str], Job]) -> Exit:
    if not jobs:
        raise Usage("Give ids of jobs, or --all, --status, --label or --text to choose them.")
    with connect(profile) as client:
        for number, job in enumerate(jobs):
            if number and not as_json:
                show.render("")
            _print(verb(client, job), as_json)
    return Exit.OK


def _print(job: Job, as_json: bool) -> None:
    if as_json:
        show.document(job)
    else:
        show.render(show.job(job))


def _up_to(limit: int, found: Iterable[T]) -> Iterator[T]:
    return islice(found, limit or None)


def _page(limit: int, maximum: int) -> int:
    """The page size: one more than is shown, to know whether there are more."""
    return min(limit + 1, maximum) if limit else maximum
