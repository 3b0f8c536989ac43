"""Sends a version's files to a bucket: only what is missing, in parallel, each verified on its way.

`.presswork` under the prefix says which dataset it is for, and names every file that was put there, as in a folder
that was pulled. Shards come first, then what describes them, and manifest.json last: until then the version before
stays whole, and is deleted afterwards.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import PurePosixPath
from threading import Event
from typing import TYPE_CHECKING, Any, Self

from presswork_client import DatasetFile, DatasetHandle
from presswork_client.pulling import JOURNAL, MANIFEST, Source
from services.cli.exits import Usage
from services.core.model.errors import ObjectMissing

if TYPE_CHECKING:  # the other commands need no store
    from services.core.storage.destination import Destination

_TYPES = {
    ".tar": "application/x-tar", ".parquet": "application/vnd.apache.parquet", ".zip": "application/zip",
    ".json": "application/json", ".yaml": "application/yaml", ".md": "text/markdown", ".png": "image/png",
    ".jpg": "image/jpeg", ".webp": "image/webp",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delivered:
    """How many files are there, how many of them were sent now, with so many bytes, and how many of another version
    were deleted."""

    files: int
    sent: int
    bytes: int
    deleted: int


class Stopped(Exception):
    """Another file failed, or Ctrl-C was pressed."""


def deliver(
    dataset: DatasetHandle,
    files: Sequence[DatasetFile],
    to: "Destination",
    source: Source,
    *,
    parallel: int,
    keep: bool,
    on_bytes: Callable[[int], None],
    version: Sequence[DatasetFile] = (),
) -> Delivered:
    """`keep`: files of other versions stay. `version`: all files of the version, if `files` are those of one split; the
    manifest then lists the splits that are there. Raises ClientError, StoreUnavailable and Usage."""
    held = to.sizes()
    before = _journal(to, held, source)
    now = {file["path"]: file["split"] for file in files} | ({MANIFEST: None} if version else {})
    shards = [file for file in files if file["split"] is not None]
    told = sorted(
        (file for file in files if file["split"] is None), key=lambda one: (one["path"] == MANIFEST, one["path"])
    )
    with Crew(parallel) as crew:
        there = crew.each(lambda file: _is_there(to, held, file), files)
        missing = {file["path"] for file, found in zip(files, there, strict=True) if not found}
        on_bytes(sum(file["bytes"] for file in files if file["path"] not in missing))
        if before | now != before or JOURNAL not in held:
            _note(to, source, before | now)
        to.abandon_uploads(before | now)

        def send(file: DatasetFile) -> None:
            _send(dataset, to, file, on_bytes, crew.stopping)

        crew.each(send, [file for file in shards if file["path"] in missing])
        for file in told:
            if file["path"] in missing:
                send(file)
        if version:
            _put_manifest(dataset, to, version, {name: size for name, size in held.items() if name in before}, now)
        over = (
            []
            if keep
            else [path for path, split in before.items() if path not in now and source.split in (None, split)]
        )
        crew.each(to.drop, [path for path in over if path in held])
    if over:
        _note(to, source, {path: split for path, split in (before | now).items() if path not in over})
    sent = sum(file["bytes"] for file in files if file["path"] in missing)
    return Delivered(len(now), len(missing), sent, sum(path in held for path in over))


class Crew:
    """So many threads at a time. What one raises, or Ctrl-C, stops the others."""

    def __init__(self, parallel: int) -> None:
        self._pool, self._parallel, self.stopping = ThreadPoolExecutor(parallel), parallel, Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def each(self, verb: Callable[[Any], Any], things: Iterable[Any]) -> list[Any]:
        """What the verb returns for each thing, in order. Raises what the first one raised that failed."""
        found: list[Any] = []
        running: dict[Future[Any], int] = {}
        for place, thing in enumerate(things):
            found.append(None)
            running[self._pool.submit(verb, thing)] = place
            if len(running) >= 2 * self._parallel:
                self._settle(running, found)
        while running:
            self._settle(running, found)
        return found

    @staticmethod
    def _settle(running: dict[Future[Any], int], found: list[Any]) -> None:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            found[running.pop(future)] = future.result()


def _journal(to: "Destination", held: dict[str, int], source: Source) -> dict[str, str | None]:
    """The split of each file that was put there. Raises Usage if the prefix is not the dataset's."""
    if not held:
        return {}
    try:
        noted = json.loads(to.read(JOURNAL)) if JOURNAL in held else {}
        if noted["dataset"] == source.id:
            return {str(path): split for path, split in noted["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, ObjectMissing):
        pass
    raise Usage(f"{to.place} holds something other than the dataset {source.name}; name another prefix.")


def _note(to: "Destination", source: Source, files: dict[str, str | None]) -> None:
    to.put(JOURNAL, json.dumps({"dataset": source.id, "files": files}).encode(), "application/json")


def _put_manifest(
    dataset: DatasetHandle, to: "Destination", version: Sequence[DatasetFile], held: dict[str, int],
    now: dict[str, str | None],
) -> None:  # fmt: skip
    """The version's manifest, of those splits alone of which every file is there."""
    lacking = {file["split"] for file in version if file["path"] not in now and held.get(file["path"]) != file["bytes"]}
    there = {file["path"] for file in version if file["split"] is not None and file["split"] not in lacking}
    described = next(file for file in version if file["path"] == MANIFEST)
    told = json.loads(b"".join(dataset.read(described)))
    splits = {name: size for name, size in told["splits"].items() if name not in lacking}
    told |= {"images": sum(size["images"] for size in splits.values()), "splits": splits}
    told["files"] = [file for file in told["files"] if file["path"] in there]
    to.put(MANIFEST, json.dumps(told, indent=2).encode() + b"\n", "application/json")


def _is_there(to: "Destination", held: dict[str, int], file: DatasetFile) -> bool:
    return held.get(file["path"]) == file["bytes"] and to.sha256(file["path"]) == file["sha256"]


def _send(
    dataset: DatasetHandle, to: "Destination", file: DatasetFile, on_bytes: Callable[[int], None], stopping: Event
) -> None:
    def blocks() -> Iterator[bytes]:
        for data in dataset.read(file):
            if stopping.is_set():
                raise Stopped
            on_bytes(len(data))
            yield data

    media_type = _TYPES.get(PurePosixPath(file["path"]).suffix, "application/octet-stream")
    to.send(file["path"], blocks(), file["bytes"], media_type, file["sha256"])
