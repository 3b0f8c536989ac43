"""The licence of a model, from its card: the head of README.md, as the hub reads it."""

import re
from pathlib import Path

from services.core.model import licenses
from services.core.model.licenses import License

_HEAD = 65_536  # bytes that are read
_FIELD = re.compile(r"(license|license_name|license_link)\s*:\s*(.*)")
_DECIDIFFUSION = "openrail++"  # as its publisher's card says, for directories without a card


def read_license(folder: Path, name: str) -> License | None:
    """The licence of the model `name` in `folder`; None if its card does not say."""
    fields = _head(folder / "README.md")
    if fields.get("license"):
        return licenses.named(fields["license"], fields.get("license_name", ""), fields.get("license_link", ""))
    if name.lower().startswith("deci/decidiffusion"):
        return licenses.named(_DECIDIFFUSION)
    return None


def _head(file: Path) -> dict[str, str]:
    """The three fields in the YAML between the first two lines of dashes. A list gives its first entry."""
    try:
        with file.open("rb") as stream:
            lines = stream.read(_HEAD).decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    except OSError:
        return {}
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, str] = {}
    waiting = ""
    for line in lines[1:]:
        if line.strip() == "---":
            return found
        if waiting and (entry := re.fullmatch(r"\s*-\s+(.*)", line)):
            found[waiting] = _plain(entry[1])
        waiting = ""
        if field := _FIELD.fullmatch(line.rstrip()):
            value = field[2].split(" #")[0].strip()
            found[field[1]] = _plain(value.strip("[]").split(",")[0])
            waiting = "" if value else field[1]
    return {}  # the head has no end


def _plain(value: str) -> str:
    return value.strip().strip("\"'")
