"""`presswork images` and `duplicates`: a job's images with their scores, and those that look alike."""

from itertools import islice
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from presswork_client import AlikeGroup, Image
from services.cli import options, show, units
from services.cli.exits import Usage, guarded
from services.cli.profile import connect


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the commands of this file."""
    app.command("images", rich_help_panel=panel)(guarded(list_images))
    app.command("duplicates", rich_help_panel=panel)(guarded(list_duplicates))


def list_images(
    job: options.JobId,
    status: Annotated[
        Literal["queued", "rendering", "done", "failed", "cancelled"] | None,
        typer.Option(help="Only images of this status.", show_default=False),
    ] = None,
    mark: Annotated[
        Literal["accepted", "rejected", "starred"] | None,
        typer.Option(help="Only images with this mark.", show_default=False),
    ] = None,
    score: options.Scores = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="By a score; -NAME: the highest first.", show_default=False),
    ] = None,
    metadata: options.Metadata = None,
    limit: options.Limit = 50,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """List a job's images with their scores."""
    options.metadata(metadata)
    with connect(profile) as client:
        joined = ",".join(score or []) or None
        wished = ",".join(one.replace(",", "\\,") for one in metadata or []) or None
        found = client.images(job, status, mark=mark, score=joined, sort=sort, metadata=wished)
        shown = islice(found, limit) if limit else found
        if as_json:
            for image in shown:
                show.document(image)
            return
        listed = list(shown)
        more = bool(limit) and next(found, None) is not None
    if listed:
        show.render(_table(listed))
    else:
        show.say(f"{job} has no such images")
    if more:
        show.say(f"there are more; --limit {limit * 10} shows them", style="dim")


def list_duplicates(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job's id: job_...", show_default=False)] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME=VALUE", help="Over all jobs with this label.", show_default=False),
    ] = None,
    distance: Annotated[
        int, typer.Option(min=0, max=6, help="In how many of 64 bits their perceptual hashes may differ.")
    ] = 4,
    limit: options.Limit = 50,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """List groups of images that look alike, within a job or over the jobs with a label.

    Groups are found among 20,000 images at a time, one after the other.
    """
    if (job is None) == (label is None):
        raise Usage("Name either a job or, with --label NAME=VALUE, a label.")
    named = next(iter(options.pairs([label], "--label").items())) if label else None
    with connect(profile) as client:
        found = client.near_duplicates(job, label=named, distance=distance)
        groups = islice(found, limit) if limit else found
        number = 0
        for group in groups:
            number += 1
            if as_json:
                show.document(group)
            else:
                show.render(_line(group, names_jobs=job is None))
        more = bool(limit) and next(found, None) is not None
    if not number and not as_json:
        show.say("no two images look alike")
    if more and not as_json:
        show.say(f"there are more; --limit {limit * 10} shows them", style="dim")


def _line(group: AlikeGroup, *, names_jobs: bool) -> str:
    places = ", ".join(
        f"{image['job_id']}/{image['index']}" if names_jobs else str(image["index"]) for image in group["images"]
    )
    rest = group["total"] - len(group["images"])
    return f"{units.count(group['total'], 'image')}: {places}{f' and {rest:,} more' if rest else ''}"


def _table(images: list[Image]) -> Table:
    names = list(dict.fromkeys(name for image in images for name in image["scores"] or {}))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("IMAGE", "STATUS", "CUSTOM_ID", "MARK", *(name.upper() for name in names), "PHASH"):
        table.add_column(heading, no_wrap=heading != "CUSTOM_ID", overflow="fold")
    for image in images:
        scores: dict[str, Any] = image["scores"] or {}
        cells = [_cell(scores[name]) if name in scores else "" for name in names]
        table.add_row(
            str(image["index"]), show.status(image["status"]), image["custom_id"] or "", image["mark"] or "", *cells,
            image["phash"] or "",
        )  # fmt: skip
    return table


def _cell(score: float | None) -> str:
    return "failed" if score is None else f"{score:.4g}"
