"""`presswork dataset`: named collections of images that grow over many jobs, version by version."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from presswork_client import ClientError, Dataset, DatasetHandle, DatasetVersion
from presswork_client.pulling import Pulled
from services.cli import dataset_delivery, follow, options, pushing, removal, show, units
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.profile import connect
from services.core.exports.formats import FormatName
from services.core.model.errors import PressworkError

app = typer.Typer(no_args_is_help=True, help="Collect the images of many jobs as training data, version by version.")
_PATIENCE_SECONDS = 60.0
_SHOWN = 10

Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.", show_default=False)]
Jobs = Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Ids of jobs: job_...", show_default=False)]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME=VALUE", help="All jobs with this label; may be repeated.", show_default=False
    ),
]
Marks = Annotated[
    list[str] | None,
    typer.Option(
        "--mark", metavar="MARK", help="accepted, rejected, starred or none; may be repeated.", show_default=False
    ),
]
Flagged = Annotated[bool | None, typer.Option("--flagged/--not-flagged", help="What the checker said.")]
Unknown = Annotated[
    bool | None, typer.Option("--unknown-words/--no-unknown-words", help="Words the model does not know.")
]
Moments = Annotated[str | None, typer.Option(metavar="TIME", help="As 2026-11-26T09:00:00Z.", show_default=False)]
Statuses = Annotated[
    list[str] | None,
    typer.Option(
        "--status", metavar="STATUS", help="Only of jobs of this status; may be repeated.", show_default=False
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text", metavar="NAME", help="Metadata that is a column of text, whatever it holds.", show_default=False
    ),
]


def create(
    name: Name,
    job: Jobs = None,
    label: Labels = None,
    form: Annotated[FormatName, typer.Option("--format", "-f", help="How its shards are written.")] = "webdataset",
    split: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="NAME=SHARE", help="As train=0.98; by the request's hash.", show_default=False),
    ] = None,
    images_per_shard: Annotated[
        int | None, typer.Option(min=1, help="10,000 unless given.", show_default=False)
    ] = None,
    mark: Marks = None,
    score: options.Scores = None,
    metadata: options.Metadata = None,
    flagged: Flagged = None,
    unknown_words: Unknown = None,
    after: Moments = None,
    before: Moments = None,
    status: Statuses = None,
    text: Texts = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Make a dataset of jobs, by id or by label.

    Retries of a job belong to it. Without --mark all images are taken but rejected ones. Format, split and the size of
    shards stay as they are.
    """
    fields: dict[str, Any] = {"format": form, "jobs": job or [], "labels": _labels(label)}
    if split:
        fields["split"] = {one: _share(one, share) for one, share in options.pairs(split, "--split").items()}
    if images_per_shard is not None:
        fields["images_per_shard"] = images_per_shard
    if filters := _filters(mark, score, metadata, flagged, unknown_words, after, before, status):
        fields["filters"] = filters
    if text:
        fields["types"] = dict.fromkeys(text, "text")
    with connect(profile) as client:
        made = client.create_dataset(name, **fields)
    _told(made, as_json, f"{name} is made; `presswork dataset export {name}` writes its first version")


def add(
    name: Name,
    job: Jobs = None,
    label: Labels = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Add jobs, by id or by label; the next version has their images too."""
    _check_sources(job, label)
    with connect(profile) as client:
        made = client.dataset(name).add(job or [], _labels(label))
    _told(made, as_json, f"{name} has {units.count(len(made['definition']['jobs']), 'job')} by id and "
          f"{units.count(len(made['definition']['labels']), 'label')}")  # fmt: skip


def remove(
    name: Name,
    job: Jobs = None,
    label: Labels = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Take jobs or labels out; the next version does without their images."""
    _check_sources(job, label)
    with connect(profile) as client:
        made = client.dataset(name).remove(job or [], _labels(label))
    _told(made, as_json, f"{name} is changed")


def change(
    name: Name,
    mark: Marks = None,
    score: options.Scores = None,
    metadata: options.Metadata = None,
    flagged: Flagged = None,
    unknown_words: Unknown = None,
    after: Moments = None,
    before: Moments = None,
    status: Statuses = None,
    text: Texts = None,
    no_filters: Annotated[bool, typer.Option("--no-filters", help="Take all but rejected images.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Set other filters, in place of all that there are."""
    filters = _filters(mark, score, metadata, flagged, unknown_words, after, before, status)
    fields: dict[str, Any] = {"filters": filters} if filters or no_filters else {}
    if text:
        fields["types"] = dict.fromkeys(text, "text")
    if not fields:
        raise Usage("Give a filter, --no-filters or --text.")
    with connect(profile) as client:
        made = client.dataset(name).change(**fields)
    _told(made, as_json, f"{name} is changed; the next version follows")


def ls(limit: options.Limit = 50, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List datasets."""
    with connect(profile) as client:
        found = list(islice(client.datasets(), limit or None))
    if as_json:
        for one in found:
            show.document(one)
        return
    if not found:
        show.say("there are no datasets; `presswork dataset create NAME JOB` makes one")
        return
    table = _table("NAME", "VERSION", "FORMAT", "SOURCES", "CHANGED")
    for one in found:
        sources = len(one["definition"]["jobs"]) + len(one["definition"]["labels"])
        table.add_row(one["name"], str(one["version"] or "-"), one["format"], f"{sources:,}", one["updated_at"][:16])
    show.render(table)


def show_dataset(
    name: Name, limit: options.Limit = _SHOWN, profile: options.ProfileName = None, as_json: options.Json = False
) -> None:
    """Show a dataset: what it is made of, and its newest versions."""
    with connect(profile) as client:
        dataset = client.dataset(name)
        found, versions = dataset.show(), list(islice(dataset.versions(), limit or None))
    if as_json:
        show.document({**found, "versions": versions})
        return
    definition = found["definition"]
    filters = [f"{key}: {_words(value)}" for key, value in definition["filters"].items() if value != []]
    facts = {"jobs": ", ".join(definition["jobs"][:_SHOWN]), "labels": ", ".join(definition["labels"]),
             "filters": ", ".join(filters),
             "split": ", ".join(f"{key} {value:g}" for key, value in definition["split"].items())}  # fmt: skip
    show.render(f"{name} ({found['format']})")
    for word, value in facts.items():
        if value:
            show.render(f"  {word}: {value}")
    if versions:
        show.render(_versions(versions))
    else:
        show.say(f"it has no version yet; `presswork dataset export {name}` writes one")


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def export(
    name: Name,
    while_running: Annotated[
        bool, typer.Option("--while-running", help="Also what unfinished jobs have done so far.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start it and return.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Write the next version.

    Shards that are written are kept; new images go to new shards; what was rejected or deleted since is listed in the
    manifest, and its shards are written again. If this is interrupted, the version goes on.
    """
    with connect(profile, _PATIENCE_SECONDS) as client:
        dataset = client.dataset(name)
        made = dataset.export(while_running=while_running)
        if not no_wait:
            made = _followed(dataset, made)
    if as_json:
        show.document(made)
    else:
        show.render(_versions([made]))
    if made["status"] in ("failed", "cancelled"):
        raise PressworkError(f"version {made['version']} {made['status']}: {made['error'] or 'it was cancelled'}")
    return Exit.OK


def cancel(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="The version that is being written.", show_default=False)],
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Stop a version that is being written; what was stored for it is deleted."""
    with connect(profile) as client:
        made = client.dataset(name).cancel(version)
    if as_json:
        show.document(made)
    else:
        show.say(f"version {version} of {name} is {made['status']}")


def diff(
    name: Name,
    before: Annotated[int, typer.Argument(metavar="FROM", min=1, help="A version.", show_default=False)],
    after: Annotated[int, typer.Argument(metavar="TO", min=1, help="Another one.", show_default=False)],
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=1000, help="How many images to show.")] = 50,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Compare two versions: the images that one holds and the other does not."""
    with connect(profile) as client:
        found = client.dataset(name).diff(before, after, limit=limit)
    if as_json:
        show.document(found)
        return
    shards = f"{found['shards_added']:,} shards more, {found['shards_removed']:,} fewer"
    show.say(f"{found['added']:,} images added, {found['removed']:,} removed; {shards}")
    for one in found["images"]:
        sign = "+" if one["change"] == "added" else "-"
        show.render(f"{sign} {one['job_id']}/{one['index']}" + (f"  {one['why']}" if one["why"] else ""))
    if found["added"] + found["removed"] > len(found["images"]):
        show.say("there are more; --limit shows up to 1,000", style="dim")


def pull(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The folder; by default the dataset's name.", show_default=False
        ),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="By default the last.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only this split.", show_default=False)] = None,
    parallel: Annotated[int, typer.Option("--parallel", "-p", min=1, max=64, help="How many at a time.")] = 8,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Fetch a version into a folder: only what is missing, verified.

    A second run fetches what a newer version has more, and deletes what it has not. If it is interrupted, or the disk
    is full, the same command goes on.
    """
    folder = output or Path(name)
    with connect(profile, dataset_delivery.PATIENCE_SECONDS) as client:
        dataset = client.dataset(name)
        number = dataset_delivery.number_of(dataset, version)
        total = sum(file["bytes"] for file in dataset.files(number, split=split))
        with dataset_delivery.moving("pulling", total) as moved:
            found = _pulled(dataset, folder, number, split, parallel, moved)
    if as_json:
        show.document(
            {"object": "pull", "dataset": name, "version": number, "folder": str(folder), "files": found.files,
             "fetched": found.fetched, "bytes": found.bytes, "deleted": found.deleted}
        )  # fmt: skip
        return
    more = f", {found.deleted:,} of another version deleted" if found.deleted else ""
    fetched = f"{found.fetched:,} ({units.size(found.bytes)}) fetched{more}"
    show.say(f"version {number} of {name} is in {folder}: {found.files:,} files, {fetched}; every sha256 matches")


def _pulled(
    dataset: DatasetHandle, folder: Path, number: int, split: str | None, parallel: int, moved: Callable[[int], None]
) -> Pulled:
    try:
        return dataset.pull(folder, number, split=split, parallel=parallel, on_bytes=moved)
    except ClientError as error:
        if error.code == "other_folder":
            raise Usage(error.message) from None
        if error.code == "disk_full":
            raise PressworkError(error.message) from None
        raise


def urls(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="By default the last.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only this split.", show_default=False)] = None,
    profile: options.ProfileName = None,
) -> None:
    """Print the addresses of the shards, for programs that read WebDataset. They need no key."""
    with connect(profile) as client:
        for url in client.dataset(name).urls(version, split=split):
            show.render(url)


def rm(
    name: Name,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="This version alone.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Delete a dataset with all its versions, or one version. Jobs and images stay.

    The other versions keep all their files. A version's number is not given again.
    """
    with connect(profile) as client:
        dataset = client.dataset(name)
        show.say(_losing(dataset, version))
        if not yes and not removal.agrees():
            show.say("nothing was deleted")
            return Exit.FAILED
        if version is None:
            dataset.delete()
        else:
            dataset.delete_version(version)
    if as_json and version is None:
        show.document({"name": name, "object": "dataset", "deleted": True})
    elif as_json:
        show.document({"dataset": name, "version": version, "object": "dataset.version", "deleted": True})
    else:
        what = name if version is None else f"version {version} of {name}"
        show.say(f"{what} is deleted; the server frees the space in the background")
    return Exit.OK


def _losing(dataset: DatasetHandle, version: int | None) -> str:
    if version is not None:
        return f"deletes version {version} of {dataset.name}, {dataset.version(version)['images']:,} images"
    last = dataset.show()["version"]
    return f"deletes {dataset.name} " + (f"with version {last} and those before" if last else "without a version")


def _followed(dataset: DatasetHandle, made: DatasetVersion) -> DatasetVersion:
    number = made["version"]

    def polls() -> Iterator[DatasetVersion]:
        while True:
            found = dataset.version(number)
            yield found
            if found["finished_at"]:
                return
            time.sleep(follow.POLL_SECONDS)

    show.say(f"version {number} of {dataset.name} is {made['status']}", style="dim")
    try:
        with follow.bar() as progress:
            task = progress.add_task(f"version {number}", total=None, tail="")
            for found in follow.through_outages(polls):
                words = found["error"] or f"{found['status']}, {units.size(found['bytes'])}"
                counts = found["counts"]
                progress.update(task, completed=counts["done"], total=counts["total"] or None, tail=words)
    except KeyboardInterrupt:
        message = f"stopped; the version goes on, and `presswork dataset show {dataset.name}` tells of it"
        raise Interrupted(message) from None
    return found


def _filters(
    mark: list[str] | None, score: list[str] | None, metadata: list[str] | None, flagged: bool | None,
    unknown_words: bool | None, after: str | None, before: str | None, status: list[str] | None,
) -> dict[str, Any]:  # fmt: skip
    wished = [str(one) for one in options.metadata(metadata)]
    given = {
        "marks": mark, "scores": score, "metadata": wished, "flagged": flagged, "unknown_words": unknown_words,
        "after": after, "before": before, "statuses": status,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None and value != []}


def _labels(given: list[str] | None) -> list[str]:
    found = []
    for word in given or []:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise Usage(f"--label is {word!r}; it must be NAME=VALUE.")
        found.append(f"{name}:{value}")
    return found


def _share(name: str, share: str) -> float:
    try:
        return float(share)
    except ValueError:
        raise Usage(f"--split gives {name} the share {share!r}; it must be a number such as 0.98.") from None


def _check_sources(job: list[str] | None, label: list[str] | None) -> None:
    if not job and not label:
        raise Usage("Name jobs, or labels with --label NAME=VALUE.")


def _told(made: Dataset, as_json: bool, words: str) -> None:
    if as_json:
        show.document(made)
    else:
        show.say(words)


def _versions(found: list[DatasetVersion]) -> Table:
    table = _table("VERSION", "STATUS", "IMAGES", "NEW", "REMOVED", "SIZE", "CREATED")
    for one in found:
        table.add_row(
            str(one["version"]), show.status(one["status"]), f"{one['images']:,}", f"{one['counts']['done']:,}",
            f"{one['removed']:,}", units.size(one["bytes"]), one["created_at"][:16],
        )  # fmt: skip
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="fold")
    return table


_COMMANDS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("create", create), ("add", add), ("remove", remove), ("set", change), ("ls", ls), ("show", show_dataset),
    ("export", export), ("cancel", cancel), ("diff", diff), ("pull", pull),
    ("deliver", dataset_delivery.deliver), ("push", pushing.push), ("urls", urls), ("rm", rm),
)  # fmt: skip
for _name, _command in _COMMANDS:
    app.command(_name)(guarded(_command))
