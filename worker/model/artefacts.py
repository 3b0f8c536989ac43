"""A cache of files that take long to make, shared by processes. Its key is a hash of everything that decides the files.

A file is used only after its sha256 has been checked; damaged and half-written files are made again.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from services.core.model.errors import SettingsError

DRAFT = ".draft-"
FULL = (errno.ENOSPC, errno.EDQUOT)
LOCK = ".lock"


class Artefacts:
    """The folder `<cache>/<model>/<key>/`. A part's manifest, `<part>.json`, is written after its files."""

    def __init__(self, cache: Path, model: str, decides: Mapping[str, Any]) -> None:
        """Raises SettingsError when `cache` cannot be written."""
        key_text = json.dumps(decides, indent=2, sort_keys=True)
        self.folder = cache / _file_name(model) / hashlib.sha256(key_text.encode()).hexdigest()[:16]
        with _writable(cache):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                _write_text(self.folder / "key.txt", key_text)
        self._sound: set[str] = set()

    def get(self, part: str, make: Callable[[Path], None]) -> Path:
        """The folder, with complete files of `part`.

        If they are missing or damaged, `make` writes them to a temporary folder under a lock. Other processes wait for
        the lock, which a dying process releases.
        """
        if part in self._sound:
            return self.folder
        # First without the lock: files are usually complete, and hashing gigabytes should not make others wait.
        if not self._is_whole(part):
            with _writable(self.folder), self._locked():
                if not self._is_whole(part):
                    self._make(part, make)
        self._sound.add(part)
        return self.folder

    def has(self, part: str) -> bool:
        """Whether there are files of `part`, which `get` will check."""
        return self._manifest(part).exists()

    def contents(self, part: str) -> dict[str, str]:
        """The sha256 of each file of a part that `get` gave, by name."""
        manifest_entries = json.loads(self._manifest(part).read_text(encoding="utf-8"))
        return {name: entry["sha256"] for name, entry in manifest_entries.items()}

    def _make(self, part: str, make: Callable[[Path], None]) -> None:
        for left in self.folder.glob(f"{DRAFT}*"):  # this process has the lock, so the process that wrote these is dead
            shutil.rmtree(left, ignore_errors=True)
        manifest = self._manifest(part)
        manifest.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix=DRAFT, dir=self.folder) as draft:
            make(Path(draft))
            files = sorted(Path(draft).iterdir())
            manifest_entries = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}
            for file in files:
                file.replace(self.folder / file.name)
        _write_text(manifest, json.dumps(manifest_entries, indent=2))

    def _is_whole(self, part: str) -> bool:
        try:
            manifest_entries = json.loads(self._manifest(part).read_text(encoding="utf-8"))
            # Sizes first, because they reveal a truncated file without reading it.
            return all(
                (self.folder / name).stat().st_size == entry["bytes"] for name, entry in manifest_entries.items()
            ) and all(_sha256(self.folder / name) == entry["sha256"] for name, entry in manifest_entries.items())
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return False

    def _manifest(self, part: str) -> Path:
        return self.folder / f"{part}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lets one process in at a time; the kernel releases a dead process's lock."""
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """What cannot be read or written elsewhere, such as the model, is not held against the folder."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        if error.filename is not None:
            named = Path(os.fsdecode(error.filename))
            if not named.is_relative_to(folder) and not folder.is_relative_to(named):
                raise SettingsError(f"{named} cannot be used: {why}.") from None
        if error.errno in FULL:
            todo = "make room, or set PRESSWORK_ARTEFACTS to a folder on another disk"
        else:
            todo = "let this user write there, or set PRESSWORK_ARTEFACTS to a folder that can be written"
        raise SettingsError(f"Nothing can be stored in the artefacts' folder {folder}: {why}; {todo}.") from None


def _write_text(file: Path, text: str) -> None:
    """Writes the file completely or not at all."""
    beside = file.with_name(f".{file.name}-{os.getpid()}")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).lstrip(".") or "model"
