"""Fetches the files of a dataset's version into a folder: only what is missing, in parallel, each verified.

manifest.json comes last: the folder is a version's when all of it is there. A full disk loses nothing: what is there
stays, and so does the part of a file.
"""

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from presswork_client.answers import DatasetFile
from presswork_client.transport import ClientError, Transport, file_sha256

MANIFEST = "manifest.json"
_PART = ".part"
_DESCRIBES = ("README.md", "SHA256SUMS", MANIFEST)  # in this order, after all others


@dataclass(frozen=True, slots=True)
class Pulled:
    """How many files are in the folder, how many of them were fetched now, with so many bytes, and how many of another
    version were deleted."""

    files: int
    fetched: int
    bytes: int
    deleted: int


def pull(
    transport: Transport,
    files: Sequence[DatasetFile],
    folder: Path,
    name: str,
    parallel: int,
    on_bytes: Callable[[int], None] | None,
    *,
    whole: bool,
) -> Pulled:
    """`whole`: the files are all that the version has. Raises ClientError."""
    before = _listed(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [file for file in files if file["path"] not in _DESCRIBES]
    last = sorted((file for file in files if file["path"] in _DESCRIBES), key=lambda one: _DESCRIBES.index(one["path"]))
    missing = [file for file in shards if not _is_there(folder, file)]
    for file in shards:
        if on_bytes is not None and file not in missing:
            on_bytes(file["bytes"])
    _check_space(folder, missing)
    _fetch_all(transport, missing, folder, parallel, on_bytes)
    others = [file for file in last if not _is_there(folder, file)]
    _fetch_all(transport, others, folder, 1, on_bytes)
    deleted = _delete_others(folder, before.keys() - {file["path"] for file in files}) if whole else 0
    fetched = [*missing, *others]
    return Pulled(len(files), len(fetched), sum(file["bytes"] for file in fetched), deleted)


def _listed(folder: Path, name: str) -> dict[str, str]:
    """The sha256 of each file that the folder's manifest lists. Raises ClientError if it holds something else."""
    try:
        held = json.loads((folder / MANIFEST).read_bytes())
        if held["dataset"] == name:
            return {str(entry["path"]): str(entry["sha256"]) for entry in held["files"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        pass
    raise ClientError(
        0, "other_folder", f"{folder} holds something other than the dataset {name}; name another folder."
    )


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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"The disk of {folder} is full; nothing is lost: free some space, and the same call goes on."
        raise ClientError(0, "disk_full", message) from None
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
    transport.save(file["url"], path, file["sha256"], on_bytes)


def _part(folder: Path, file: DatasetFile) -> Path:
    path = folder / _inside(file["path"])
    return path.with_name(path.name + _PART)


def _delete_others(folder: Path, paths: set[str]) -> int:
    deleted = 0
    for name in paths - set(_DESCRIBES):
        path = folder / _inside(name)
        if path.is_file():
            path.unlink()
            deleted += 1
    return deleted


def _inside(path: str) -> PurePosixPath:
    """A path inside the folder. Raises ClientError if the server names one outside."""
    found = PurePosixPath(path)
    if found.is_absolute() or ".." in found.parts or not found.parts:
        raise ClientError(0, "bad_path", f"the server named a file {path!r}, outside the folder; it was not fetched.")
    return found
