"""Files that take long to make and are made once: a folder of them for all that decides them, shared by processes.

Nothing in it is used before its sha256 has been compared; what is damaged, or half written, is made again.
"""

import contextlib
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
LOCK = ".lock"


class Artefacts:
    """`<cache>/<model>/<key>/`, the key a hash of what decides the files. They are made in parts, each of which has a
    manifest, `<part>.json`, that is written last."""

    def __init__(self, cache: Path, model: str, decides: Mapping[str, Any]) -> None:
        """Raises SettingsError when `cache` cannot be written."""
        said = json.dumps(decides, indent=2, sort_keys=True)
        self.folder = cache / _file_name(model) / hashlib.sha256(said.encode()).hexdigest()[:16]
        with _writable(cache):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                _write_text(self.folder / "key.txt", said)
        self._sound: set[str] = set()

    def get(self, part: str, make: Callable[[Path], None]) -> Path:
        """The folder, in which the files of `part` are whole. If they are not, `make` writes them to a folder of its
        own, while others who want the same wait; should this process die meanwhile, they need not."""
        if part in self._sound:
            return self.folder
        # Looked at without the lock first: whole is the rule, and a hash of gigabytes should not keep others waiting.
        if not self._is_whole(part):
            with _writable(self.folder), self._locked():
                if not self._is_whole(part):
                    self._make(part, make)
        self._sound.add(part)
        return self.folder

    def _make(self, part: str, make: Callable[[Path], None]) -> None:
        for left in self.folder.glob(f"{DRAFT}*"):  # the lock is ours, so whoever wrote these is dead
            shutil.rmtree(left, ignore_errors=True)
        manifest = self._manifest(part)
        manifest.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix=DRAFT, dir=self.folder) as draft:
            make(Path(draft))
            files = sorted(Path(draft).iterdir())
            said = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}
            for file in files:
                file.replace(self.folder / file.name)
        _write_text(manifest, json.dumps(said, indent=2))

    def _is_whole(self, part: str) -> bool:
        try:
            said = json.loads(self._manifest(part).read_text(encoding="utf-8"))
            # Sizes first: a truncated file is found without reading it.
            return all((self.folder / name).stat().st_size == entry["bytes"] for name, entry in said.items()) and all(
                _sha256(self.folder / name) == entry["sha256"] for name, entry in said.items()
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return False

    def _manifest(self, part: str) -> Path:
        return self.folder / f"{part}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time; the kernel lets go of a dead one's lock."""
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"Nothing can be stored in the artefacts' folder {folder}: {error.strerror or error}."
        ) from None


def _write_text(file: Path, text: str) -> None:
    """Whole or not at all."""
    beside = file.with_name(f".{file.name}-{os.getpid()}")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).lstrip(".") or "model"
