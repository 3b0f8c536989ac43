"""The programs as they were before the newest migration: this repository's own history, unpacked into a folder."""

import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from services.core.db import revisions
from tests import programs
from tests.processes import PROGRAMS, Process

ROOT = Path(__file__).parents[1]


def commit() -> tuple[str, str]:
    """The last commit with another schema, or why it cannot be had."""
    try:
        if _git("rev-parse", "--is-shallow-repository").strip() != b"false":
            return "", "this is a shallow clone, without the commits before (git fetch --unshallow)"
        newest = f"migrations/versions/{revisions.known()[0]}_*.py"
        added = _git("log", "-1", "--format=%H", "--diff-filter=A", "--", newest).decode().strip()
        return _git("rev-parse", f"{added}^").decode().strip(), ""
    except (OSError, subprocess.CalledProcessError):
        return "", "there is no history of the repository here"


def unpack(commit: str, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit))) as archive:
        archive.extractall(folder, filter="data")
    return folder


class EarlierProcess(Process):
    """A program of the release in that folder, as `Process` is one of this release."""

    def __init__(self, tree: Path, module: str, environ: Mapping[str, str], log: Path, *arguments: str) -> None:
        own = programs.environ(PROGRAMS[module], environ) if module in PROGRAMS else dict(environ)
        self._start([sys.executable, "-m", module, *arguments], own | _paths(tree), log, cwd=tree)


def newest_revision(tree: Path) -> str:
    """Of the schema, as the code in that folder knows it."""
    asked = "from services.core.db import revisions; print(revisions.known()[0])"
    return subprocess.run(
        [sys.executable, "-c", asked], cwd=tree, env=_paths(tree), capture_output=True, text=True, check=True
    ).stdout.strip()


def _paths(tree: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{tree}:{tree / 'services/client'}"}


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
