"""The options that choose jobs, the same for every command that acts on all that match."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import typer

from services.cli import options
from services.cli.exits import Usage
from services.core.model.states import JobState

PANEL = "Which jobs, in place of ids"
HINT = "Give ids of jobs, or choose them: --all, --status, --label and others that --help lists."
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="With this label.", show_default=False, rich_help_panel=PANEL),
]
OfPriority = Annotated[
    Literal["high", "normal", "low"] | None,
    typer.Option("--priority", help="Of this priority.", show_default=False, rich_help_panel=PANEL),
]
Statuses = Annotated[
    list[JobState] | None,
    typer.Option("--status", help="Of this status; may be repeated.", show_default=False, rich_help_panel=PANEL),
]


def _text(name: str, metavar: str, words: str) -> Any:
    return typer.Option(name, metavar=metavar, help=words, show_default=False, rich_help_panel=PANEL)


_OPTIONS: dict[str, Any] = {
    "every": Annotated[bool, typer.Option("--all", help="Every job.", rich_help_panel=PANEL)],
    "status": Statuses,
    "label": Labels,
    "text": Annotated[str | None, _text("--text", "TEXT", "With this text in a label.")],
    "model": Annotated[str | None, _text("--model", "NAME", "That render with this model.")],
    "of_priority": OfPriority,
    "submitted_by": Annotated[str | None, _text("--submitted-by", "KEY", "Submitted by the key of this name or id.")],
    "since": Annotated[str | None, _text("--since", "DAY", "Submitted on this day (UTC) or later: 2026-11-26.")],
    "until": Annotated[str | None, _text("--until", "DAY", "Submitted on this day (UTC) or before.")],
    "yes": Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")],
    "dry_run": Annotated[bool, typer.Option("--dry-run", help="Say what would be touched, and change nothing.")],
}
_HOW = ("yes", "dry_run")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was given of these options."""

    every: bool = False
    status: list[JobState] | None = None
    label: list[str] | None = None
    text: str | None = None
    model: str | None = None
    of_priority: str | None = None
    submitted_by: str | None = None
    since: str | None = None
    until: str | None = None
    yes: bool = False
    dry_run: bool = False

    def given(self) -> list[str]:
        """The names of those that choose."""
        return [field.name for field in fields(self) if field.name not in _HOW and getattr(self, field.name)]

    def wanted(self) -> dict[str, Any]:
        """The filter, as the server takes it. Raises Usage."""
        if self.label is not None and len(self.label) > 1:
            raise Usage("--label chooses jobs by one label; give it once.")
        pair = next(iter(options.pairs(self.label, "--label").items()), None)
        found = {
            "status": [str(state.value) for state in self.status] if self.status else None,
            "label": None if pair is None else ":".join(pair),
            "text": self.text,
            "model": self.model,
            "of_priority": self.of_priority,
            "submitted_by": self.submitted_by,
            "since": self.since,
            "until": self.until,
        }
        return {name: value for name, value in found.items() if value is not None}


def choosing(verb: Callable[..., Any], **others: Any) -> Callable[..., Any]:
    """The command with these options in the place of its argument `chosen`; some of them are as `others` says."""
    declared = _OPTIONS | others
    own = inspect.signature(verb)
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        if parameter.name != "chosen":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        for name, annotation in declared.items():
            default = Chosen.__dataclass_fields__[name].default
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

    def run(**given: Any) -> Any:
        return verb(chosen=Chosen(**{name: given.pop(name) for name in declared}), **given)

    run.__name__, run.__doc__ = verb.__name__, verb.__doc__
    setattr(run, "__signature__", own.replace(parameters=parameters))  # noqa: B010  typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
