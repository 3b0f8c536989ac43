"""The options and arguments that several commands share."""

import re
from datetime import timedelta
from typing import Annotated, Literal

import typer

from services.cli import completion
from services.cli.exits import Usage
from services.core.model import metadata_filters
from services.core.model.devices import parse as parse_devices

_SPAN = re.compile(r"([0-9]{1,6})(min|h|d|w)", re.ASCII)
_MINUTES = {"min": 1, "h": 60, "d": 1440, "w": 10080}  # no "m", which also means months
JobId = Annotated[
    str,
    typer.Argument(metavar="JOB", help="A job's id: job_...", show_default=False, autocompletion=completion.job_ids),
]
JobIds = Annotated[
    list[str],
    typer.Argument(metavar="JOB", help="Ids of jobs: job_...", show_default=False, autocompletion=completion.job_ids),
]
JobIdsOrNone = Annotated[
    list[str] | None,
    typer.Argument(metavar="JOB", help="Ids of jobs: job_...", show_default=False, autocompletion=completion.job_ids),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print only JSON on stdout, one line per object.", rich_help_panel="Everywhere"),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="A profile of ~/.config/presswork/config.toml (or PRESSWORK_CONFIG).",
        rich_help_panel="Everywhere",
        show_default=False,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="With the same key, a repeated command makes one job.",
        show_default=False,
    ),
]
Priority = Annotated[
    Literal["high", "normal", "low"] | None,
    typer.Option(help="Higher priorities are rendered first.", show_default=False),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="A label of the job; may be repeated.", show_default=False),
]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        "--score",
        metavar="CONDITION",
        help="Only images with such a score: 'sharpness>=0.1' or 'uniform<=0.9'; may be repeated.",
        show_default=False,
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME=VALUE",
        help="Only images with such metadata: split=val, or lang!=de; may be repeated.",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("--limit", "-l", min=0, help="How many to show; 0 shows all.")]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE options as a dict. Raises Usage."""
    found: dict[str, str] = {}
    for word in given or []:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise Usage(f"{option} is {word!r}; it must be NAME=VALUE.")
        if name in found:
            raise Usage(f"{option} gives {name} twice.")
        found[name] = value
    return found


def metadata(given: list[str] | None) -> tuple[metadata_filters.Condition, ...]:
    """What --metadata asks for. Raises Usage."""
    try:
        return metadata_filters.conditions(given or [])
    except metadata_filters.NotUnderstood as error:
        raise Usage(f"--metadata: {error}") from None


_KEPT = re.compile(r"([0-9]{1,5})([dwy])")
_KEPT_UNITS = {"d": 1, "w": 7, "y": 365}


def days(word: str, option: str) -> int | None:
    """An option such as 30d, 8w, 1y or never, which is None. Raises Usage."""
    if word == "never":
        return None
    found = _KEPT.fullmatch(word)
    if found is None:
        raise Usage(f"{option} is {word!r}; it must be a number of days, weeks or years, or never: 30d, 8w, 1y.")
    return int(found[1]) * _KEPT_UNITS[found[2]]


def kept(words: list[str]) -> dict[str, int | None]:
    """Options such as payloads=30d. Raises Usage."""
    found = pairs(words, "--keep")
    for kind in found:
        if kind not in ("payloads", "objects", "records"):
            raise Usage(f"--keep names {kind!r}; it must be payloads, objects or records.")
    return {kind: days(word, f"--keep {kind}") for kind, word in found.items()}


def devices(word: str, option: str) -> tuple[str, ...]:
    """An option such as cuda:0-7. Raises Usage."""
    try:
        return parse_devices(word)
    except ValueError as error:
        raise Usage(f"{option} is {word!r}; {error}.") from None


def span(word: str, option: str) -> timedelta:
    """An option such as 30min, 12h, 30d or 8w. Raises Usage."""
    found = _SPAN.fullmatch(word)
    if found is None:
        raise Usage(
            f"{option} is {word!r}; it must be a number of minutes, hours, days or weeks: 30min, 12h, 30d or 8w."
        )
    return timedelta(minutes=int(found[1]) * _MINUTES[found[2]])
