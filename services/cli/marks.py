"""`presswork mark`: accepts, rejects or stars pictures of a job, some or all that match."""

from typing import Annotated, Any, Literal

import typer

from services.cli import options, show, units
from services.cli.exits import Usage, guarded
from services.cli.profile import connect

Mark = Literal["accepted", "rejected", "starred", "none"]
_MANY = 1_000_000


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("mark", rich_help_panel=panel)(guarded(mark))


def mark(
    job: options.JobId,
    word: Annotated[
        Mark | None,
        typer.Argument(metavar="[MARK]", help="accepted, rejected, starred, or none to remove it.", show_default=False),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="LIST", help="Indexes of images, such as 0,3,10-19.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All done images that match.")] = False,
    now: Annotated[
        Mark | None, typer.Option(help="With --all: only those that have this mark now.", show_default=False)
    ] = None,
    flagged: Annotated[
        bool | None,
        typer.Option("--flagged/--not-flagged", help="With --all: only those that the checker flagged, or not."),
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Accept, reject or star pictures of a job. Without a mark, count those there are.

    The mark stands in listings and exports, and says who set it and when. Repeating the command changes nothing.
    """
    if word is None:
        _count(job, profile, as_json)
        return
    if (images is None) == (not everything) or (images is not None and (now or flagged is not None)):
        raise Usage("Say which images: --images 0,3,10-19, or --all, with --now or --flagged if need be.")
    with connect(profile) as client:
        if images is not None:
            found = client.mark(job, word, indexes(images))
        else:
            matching: dict[str, Any] = {"mark_now": now, "flagged": flagged}
            found = client.mark_matching(job, word, **matching)
    if as_json:
        show.document(found)
    else:
        said = "without a mark" if word == "none" else word
        show.say(f"{units.count(found['matched'], 'image')} {said}, {found['changed']:,} of them newly")


def indexes(text: str) -> list[int]:
    """The indexes of a list such as `0,3,10-19`. Raises Usage."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise Usage(f"--images has {part!r}; it takes indexes and ranges, such as 0,3,10-19.")
        span = range(int(first), int(last or first) + 1)
        if not span or len(found) + len(span) > _MANY:
            raise Usage(f"--images has {part!r}; a range goes up, and all together are at most {_MANY:,} images.")
        found += span
    return found


def _count(job: str, profile: str | None, as_json: bool) -> None:
    with connect(profile) as client:
        counts = client.mark_counts(job)
    if as_json:
        show.document(counts)
    else:
        show.render(", ".join((f"{counts['accepted']:,} accepted", f"{counts['rejected']:,} rejected",
                               f"{counts['starred']:,} starred")))  # fmt: skip
