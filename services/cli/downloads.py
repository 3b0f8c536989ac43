"""`presswork download`: fetches a job's images, several at a time, verifies each, and describes them beside them.

A file whose sha256 is the recorded one is not fetched again. At the end the files that are there are counted.
"""

import hashlib
import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from presswork_client import Client, ClientError, Image, JobRequest, file_sha256
from services.cli import follow, metadata, options, show, units
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.profile import connect
from services.core.model import metadata_filters, scores
from services.core.model.file_names import PART, UniqueNames

_PATIENCE_SECONDS = 60.0
_MAX_SHOWN = 10


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("download", rich_help_panel=panel)(guarded(download))


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to fetch, and its fields in the metadata."""

    image: Image
    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Wish:
    """Which done images are wanted."""

    mark: str | None
    scores: Sequence[scores.Range]
    metadata: Sequence[metadata_filters.Condition]

    def holds(self, image: Image) -> bool:
        if self.mark not in (None, image["mark"]) or not scores.holds(image["scores"], self.scores):
            return False
        return metadata_filters.holds(image["metadata"], self.metadata)


@dataclass
class Tally:
    """`files` are in the folder at the end; `fetched` and `kept` count what was done."""

    files: int = 0
    fetched: int = 0
    kept: int = 0
    bytes: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)


def download(
    job: options.JobId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The folder; by default the job's id.", show_default=False),
    ] = None,
    names: Annotated[Literal["custom_id", "index"], typer.Option(help="What the files are named after.")] = "custom_id",
    mark: Annotated[
        Literal["accepted", "rejected", "starred"] | None,
        typer.Option(help="Only images with this mark.", show_default=False),
    ] = None,
    score: options.Scores = None,
    with_metadata: options.Metadata = None,
    parallel: Annotated[int, typer.Option("--parallel", "-p", min=1, max=64, help="How many at a time.")] = 8,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Download a job's images, each verified by its sha256.

    A file is named after its custom_id (ID~0, ID~1, ... if a request has several), else after its index. Names differ
    on every file system, also in more than their case.

    records.jsonl and metadata.parquet, which load_dataset reads, are written next to them. Files that are already there
    are not fetched again.
    """
    folder = output or Path(job)
    try:
        wished = scores.ranges(score or [])
    except scores.NotUnderstood as error:
        raise Usage(f"--score: {error}") from None
    conditions = options.metadata(with_metadata)
    with connect(profile, _PATIENCE_SECONDS) as client:
        found = client.job(job)
        total = client.mark_counts(job)[mark] if mark else found["counts"]["done"]
        metadata.claim_folder(folder, job)
        try:
            tally = _fetch_all(
                client, job, folder, UniqueNames(names), parallel, total, _Wish(mark, wished, conditions)
            )
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command goes on with what is missing") from None
    if as_json:
        show.document({"object": "download", "job_id": job, "folder": str(folder), **vars(tally)})
    else:
        _tell(tally, folder)
        if not found["finished_at"]:
            show.say(f"the job is {found['status'].replace('_', ' ')}: there will be more", style="dim")
    if tally.failed:
        return Exit.FAILED
    missing = found["counts"]["failed"] + found["counts"]["cancelled"]
    return Exit.INCOMPLETE if found["finished_at"] and missing else Exit.OK


def _fetch_all(
    client: Client, job: str, folder: Path, names: UniqueNames, parallel: int, total: int, wish: "_Wish",
) -> Tally:  # fmt: skip
    """Fetches several at a time but describes them in order, so that the metadata is the same each time."""
    tally = Tally()
    pool = ThreadPoolExecutor(parallel)
    waiting: deque[tuple[Wanted, Future[bool]]] = deque()
    try:
        with follow.bar() as progress, metadata.Metadata(folder) as described:
            task = progress.add_task("downloading", total=total, tail="")

            def settle() -> None:
                wanted, future = waiting.popleft()
                _count(tally, wanted, future)
                if not future.exception():
                    described.add(wanted.name, wanted.facts)
                progress.update(task, advance=1, tail=units.size(tally.bytes))

            for wanted in _wanted(client, job, names, wish):
                waiting.append((wanted, pool.submit(_fetch, client, job, wanted, folder)))
                if len(waiting) >= parallel * 4:
                    settle()
            while waiting:
                settle()
    finally:
        pool.shutdown(cancel_futures=True)
    _count_files(folder, tally)
    return tally


def _count_files(folder: Path, tally: Tally) -> None:
    """Counts the verified files that are there, since a file system might have taken two names for one. Those that are
    not are added to the failed ones."""
    found: set[int] = set()
    for index, name in metadata.listed(folder):
        with suppress(FileNotFoundError):
            number = (folder / name).stat().st_ino
            if not number or number not in found:  # 0: the file system has no such numbers
                found.add(number)
                tally.files += 1
                continue
        message = "its file is gone, or another one has its name"
        tally.failed.append({"index": index, "file_name": name, "message": message})


def _wanted(client: Client, job: str, names: UniqueNames, wish: "_Wish") -> Iterator[Wanted]:
    """The done images that are wished for. The others too get their names, so that a name does not depend on them."""
    for request in _in_order(client, job):
        for place, image in enumerate(request["images"]):
            name = names.of(request["custom_id"], place, request["n"], image["index"], image["output_format"])
            if image["status"] == "done" and wish.holds(image):
                facts = metadata.facts(job, image, request["prompt"], request["negative_prompt"])
                yield Wanted(image, name, facts)


def _in_order(client: Client, job: str) -> Iterator[JobRequest]:
    """The job's requests by index. The API lists them by status, so the lists of all statuses are merged."""
    lists = [client.requests(job, status) for status in ("failed", "rendering", "queued", "cancelled", "done")]
    last = -1
    for request in heapq.merge(*lists, key=lambda one: one["images"][0]["index"]):
        first = request["images"][0]["index"]
        if first > last:  # a request that changed its status meanwhile is in two lists
            yield request
            last = first


def _fetch(client: Client, job: str, wanted: Wanted, folder: Path) -> bool:
    """Fetches one image. False if the file was already there."""
    path, sha256 = folder / wanted.name, wanted.image["sha256"]
    with suppress(FileNotFoundError):
        if path.stat().st_size == wanted.image["bytes"] and file_sha256(path) == sha256:
            return False
    data = client.download(job, wanted.image["index"])
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ClientError(0, "damaged", "the download does not match its sha256")
    part = path.with_name(f"{path.name}{PART}")
    part.write_bytes(data)
    part.replace(path)
    return True


def _count(tally: Tally, wanted: Wanted, future: "Future[bool]") -> None:
    """Counts one image. A failed one is reported at the end; the download ends if the server is away or too slow, or
    the key is bad."""
    try:
        fetched = future.result()
    except ClientError as error:
        if error.code in ("unreachable", "too_slow") or error.status == 401:
            raise
        tally.failed.append({"index": wanted.image["index"], "file_name": wanted.name, "message": error.message})
        return
    tally.fetched += fetched
    tally.kept += not fetched
    tally.bytes += (wanted.image["bytes"] or 0) if fetched else 0


def _tell(tally: Tally, folder: Path) -> None:
    if not (tally.fetched or tally.kept or tally.failed):
        show.say("no image of the job is done: there is nothing to download")
        return
    kept = f", {tally.kept:,} were there already" if tally.kept else ""
    fetched = f"{tally.fetched:,} ({units.size(tally.bytes)}) downloaded{kept}"
    show.say(f"{tally.files:,} images are in {folder}: {fetched}; every sha256 matches")
    for entry in tally.failed[:_MAX_SHOWN]:
        show.say(f"image {entry['index']} ({entry['file_name']}): {entry['message']}", style="red")
    if tally.failed:
        show.say(f"{len(tally.failed):,} images are missing; the same command tries those again")
