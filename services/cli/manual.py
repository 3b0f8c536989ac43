"""What `--help` shows: examples for every command, and no type where a name says enough."""

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from services.cli.examples import EXAMPLES


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """If an option lacks its value, the error says what it takes."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)
            for param in self.params:
                if name in param.opts and isinstance(param, TyperOption) and param.help:
                    setattr(error, "message", f"{error} {param.help}")  # noqa: B010  the class is typer's own
            raise


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


def dress(app: typer.Typer, words: Sequence[str] = ()) -> None:
    """Gives every command below `app` its examples and this look."""
    for command in app.registered_commands:
        name = str(command.name or getattr(command.callback, "__name__", ""))
        command.cls = Command
        command.epilog = examples(" ".join((*words, name)))
    for group in app.registered_groups:
        group.cls = Group
        if group.typer_instance is not None:
            dress(group.typer_instance, (*words, str(group.name)))


def examples(command: str) -> str:
    """The examples as rich's markup. Lines that are apart stay lines."""
    lines = (line.replace("[", r"\[") for line in EXAMPLES[command])
    return "\n\n".join(("[bold]Examples[/bold]", *lines))


def _plain(params: list[Any]) -> list[Any]:
    """A flag has no value, and an argument's name says what it is."""
    for param in params:
        if isinstance(param, TyperArgument) or getattr(param, "is_flag", False):
            param.display_type_rich = _nothing
    return params


def _nothing(ctx: Any) -> str:  # noqa: ARG001  typer calls it
    return ""
