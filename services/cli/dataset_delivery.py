"""`presswork dataset deliver`: a version to another bucket, with the credentials of whoever runs the command. The
server neither sees nor keeps them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from presswork_client import DatasetHandle
from presswork_client.pulling import Source
from services.cli import delivering, options, show, units
from services.cli.exits import BadInput, Interrupted, Usage
from services.cli.profile import connect
from services.core.model.errors import PressworkError

PATIENCE_SECONDS = 60.0

Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.", show_default=False)]
Version = Annotated[int | None, typer.Option(min=1, help="By default the last.", show_default=False)]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Only this split.", show_default=False)]
Parallel = Annotated[int, typer.Option("--parallel", "-p", min=1, max=64, help="How many at a time.")]
Keep = Annotated[bool, typer.Option("--keep", help="Let files of other versions stay.")]


def deliver(
    name: Name,
    to: Annotated[str, typer.Argument(metavar="S3_ADDRESS", help="As s3://bucket/prefix.", show_default=False)],
    version: Version = None,
    split: Split = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="The store's address, if it is not AWS.", show_default=False)
    ] = None,
    aws_profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of ~/.aws/config; else AWS_PROFILE.", show_default=False)
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="NAME", help="The bucket's, if not found.", show_default=False)
    ] = None,
    keep: Keep = False,
    parallel: Parallel = 8,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Send a version to another bucket: only what is missing, verified.

    It goes through this machine, with your own credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile,
    or a role. The server never sees them. manifest.json comes last: until then the version before stays whole there;
    with --split it lists the splits that are there. A second run sends what a newer version has more, and deletes
    what it has not. If it is interrupted, the same command goes on.
    """
    from services.core.storage.destination import Destination, Place

    try:
        place = Place.parse(to)
    except ValueError as error:
        raise Usage(str(error)) from None
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise Usage(f"--endpoint is {endpoint!r}; it must be an address such as https://store.example.com.")
    with connect(profile, PATIENCE_SECONDS) as client:
        dataset = client.dataset(name)
        number = number_of(dataset, version)
        destination = Destination(
            place, profile=aws_profile, endpoint=endpoint, region=region, patience=PATIENCE_SECONDS, on_wait=_waiting()
        )
        files = list(dataset.files(number, split=split))
        whole = list(dataset.files(number)) if split is not None else []
        source = Source(dataset.show()["id"], name, split)
        with moving("delivering", sum(file["bytes"] for file in files)) as moved:
            found = delivering.deliver(
                dataset, files, destination, source, parallel=parallel, keep=keep, on_bytes=moved, version=whole
            )
    if as_json:
        show.document(
            {"object": "delivery", "dataset": name, "version": number, "to": str(place), "files": found.files,
             "sent": found.sent, "bytes": found.bytes, "deleted": found.deleted}
        )  # fmt: skip
        return
    more = f", {found.deleted:,} of another version deleted" if found.deleted else ""
    sent = f"{found.sent:,} ({units.size(found.bytes)}) sent{more}"
    show.say(f"version {number} of {name} is in {place}: {found.files:,} files, {sent}; every sha256 matches")


def number_of(dataset: DatasetHandle, version: int | None) -> int:
    found = version or dataset.show()["version"]
    if found is None:
        raise BadInput(f"{dataset.name} has no version yet; `presswork dataset export {dataset.name}` writes one.", [])
    return found


@contextmanager
def moving(word: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes with rate and time left, on a terminal. Ctrl-C says how to go on."""
    console = show.err()
    bar = Progress(
        TextColumn(word), BarColumn(20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=total or None)
        try:
            yield lambda count: bar.advance(task, count)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command goes on with what is missing") from None


def _waiting() -> Callable[[PressworkError], None]:
    told: set[str] = set()

    def tell(why: PressworkError) -> None:
        if str(why) not in told:
            told.add(str(why))
            show.say(f"{str(why).rstrip('.')}; trying again", style="dim")

    return tell
