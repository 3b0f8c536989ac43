"""Fetches the files of a dataset's version into a folder: only what is missing, in parallel, each verified.

`.presswork` comes first: it says which dataset the folder is for, and names every file that is put there, so that what
an interrupted call has left is deleted by a later one. manifest.json comes last: the folder is a version's when all of
it is there. A full disk loses nothing: what is there stays, and so does the part of a file.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from presswork_client.answers import DatasetFile
from presswork_client.transport import ClientError, Transport, file_sha256

MANIFEST = "manifest.json"
JOURNAL = ".presswork"
_FRESH = f"{JOURNAL}.new"  # what a kill leaves of a journal
_PART = re.compile(r"\.[0-9a-f]{16}\.part\Z")
_DESCRIBES = ("README.md", "SHA256SUMS", MANIFEST)  # in this order, after all others


@dataclass(frozen=True, slots=True)
class Pulled:
    """How many files are in the folder, how many of them were fetched now, with so many bytes, and how many of another
    version were deleted."""

    files: int
    fetched: int
    bytes: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Source:
    """The dataset that is pulled. `split` None: all that the version has."""

    id: str
    name: str
    split: str | None = None


def pull(
    transport: Transport,
    files: Sequence[DatasetFile],
    folder: Path,
    source: Source,
    parallel: int,
    on_bytes: Callable[[int], None] | None,
) -> Pulled:
    """Raises ClientError."""
    before = _journal(folder, source)
    try:
        return _into(transport, files, folder, source, parallel, on_bytes, before)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"The disk of {folder} is full; nothing is lost: free some space, and the same call goes on."
        raise ClientError(0, "disk_full", message) from None


def _into(
    transport: Transport,
    files: Sequence[DatasetFile],
    folder: Path,
    source: Source,
    parallel: int,
    on_bytes: Callable[[int], None] | None,
    before: dict[str, str | None],
) -> Pulled:
    folder.mkdir(parents=True, exist_ok=True)
    shards = [file for file in files if file["path"] not in _DESCRIBES]
    last = sorted((file for file in files if file["path"] in _DESCRIBES), key=lambda one: _DESCRIBES.index(one["path"]))
    missing = [file for file in shards if not _is_there(folder, file)]
    wanted = {file["path"] for file in missing}
    for file in shards:
        if on_bytes is not None and file["path"] not in wanted:
            on_bytes(file["bytes"])
    _check_space(folder, missing)
    now = {file["path"]: file["split"] for file in files}
    _note(folder, source, before | now)
    _fetch_all(transport, missing, folder, parallel, on_bytes)
    others = [file for file in last if not _is_there(folder, file)]
    _fetch_all(transport, others, folder, 1, on_bytes)
    over = [path for path, split in before.items() if path not in now and source.split in (None, split)]
    deleted = _delete(folder, over)
    _delete_parts(folder, [*now, *over])
    _note(folder, source, {path: split for path, split in (before | now).items() if path not in over})
    fetched = [*missing, *others]
    return Pulled(len(files), len(fetched), sum(file["bytes"] for file in fetched), deleted)


def _journal(folder: Path, source: Source) -> dict[str, str | None]:
    """The split of each file that was put into the folder. Raises ClientError if the folder is not the dataset's."""
    try:
        held = json.loads((folder / JOURNAL).read_bytes())
        if held["dataset"] == source.id:
            return {str(path): split for path, split in held["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        if not folder.exists() or (folder.is_dir() and {path.name for path in folder.iterdir()} <= {_FRESH}):
            return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    message = f"{folder} holds something other than the dataset {source.name}; name another folder."
    raise ClientError(0, "other_folder", message)


def _note(folder: Path, source: Source, files: dict[str, str | None]) -> None:
    """Replaces the journal, whole or not at all."""
    fresh = folder / _FRESH
    try:
        fresh.write_text(json.dumps({"dataset": source.id, "files": files}))
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    fresh.replace(folder / JOURNAL)


def _is_there(folder: Path, file: DatasetFile) -> bool:
    path = folder / _inside(file["path"])
    return path.is_file() and path.stat().st_size == file["bytes"] and file_sha256(path) == file["sha256"]


def _check_space(folder: Path, missing: Sequence[DatasetFile]) -> None:
    """Raises ClientError before anything is fetched, if it cannot all be kept."""
    have = sum(part.stat().st_size for file in missing if (part := _part(folder, file)).is_file())
    needed, free = sum(file["bytes"] for file in missing) - have, shutil.disk_usage(folder).free
    if needed > free:
        message = f"{folder} has {free:,} bytes free and {needed:,} are to come; free some, or name another folder."
        raise ClientError(0, "disk_full", message)


def _fetch_all(
    transport: Transport, files: Sequence[DatasetFile], folder: Path, parallel: int,
    on_bytes: Callable[[int], None] | None,
) -> None:  # fmt: skip
    pool = ThreadPoolExecutor(parallel)
    running: set[Future[None]] = set()
    try:
        for file in files:
            if len(running) >= parallel:
                running = _settled(running)
            running.add(pool.submit(_fetch, transport, file, folder, on_bytes))
        while running:
            running = _settled(running)
    finally:
        pool.shutdown(cancel_futures=True)


def _settled(running: "set[Future[None]]") -> "set[Future[None]]":
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return rest


def _fetch(transport: Transport, file: DatasetFile, folder: Path, on_bytes: Callable[[int], None] | None) -> None:
    path = folder / _inside(file["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(folder, file)
    if on_bytes is not None and part.is_file():
        on_bytes(part.stat().st_size)
    transport.save(file["url"], path, file["sha256"], on_bytes, part=part)


def _part(folder: Path, file: DatasetFile) -> Path:
    """Named by its content too: the part of another version's file is not continued."""
    path = folder / _inside(file["path"])
    return path.with_name(f"{path.name}.{file['sha256'][:16]}.part")


def _delete(folder: Path, paths: Iterable[str]) -> int:
    deleted = 0
    for name in paths:
        path = folder / _inside(name)
        if path.is_file():
            path.unlink()
            deleted += 1
    return deleted


def _delete_parts(folder: Path, paths: Iterable[str]) -> None:
    """Deletes what other versions have left unfinished of these files, when all that is wanted is there."""
    names = {folder / _inside(name) for name in paths}
    for place in {path.parent for path in names if path.parent.is_dir()}:
        for found in list(place.iterdir()):
            if _PART.search(found.name) and place / _PART.sub("", found.name) in names:
                found.unlink()


def _inside(path: str) -> PurePosixPath:
    """A path inside the folder. Raises ClientError if the server names one outside."""
    found = PurePosixPath(path)
    if found.is_absolute() or ".." in found.parts or not found.parts or "\\" in path or ":" in path:
        raise ClientError(0, "bad_path", f"the server named a file {path!r}, outside the folder; it was not fetched.")
    return found
