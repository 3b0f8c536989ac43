"""What `--help` shows: examples for every command, no type where a name says enough, and whole words in 80 columns."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from services.cli.examples import EXAMPLES

_WIDEST_CHOICE = 18  # characters of the values, as <a|b>, that the column of types shows without breaking a word


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx), ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """If an option lacks its value, the error says what it takes."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)
            for param in self.params:
                if name in param.opts and isinstance(param, TyperOption) and param.help:
                    _say(error, f"{error} {param.help}")
            _say(error, getattr(error, "message", "").removeprefix("Value error, "))
            raise


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx), ctx)


def dress(app: typer.Typer, words: Sequence[str] = ()) -> None:
    """Gives every command below `app` its examples and this look."""
    for command in app.registered_commands:
        name = str(command.name or getattr(command.callback, "__name__", ""))
        command.cls = Command
        command.help = _unwrapped(command.help or inspect.getdoc(command.callback) or "")
        command.epilog = examples(" ".join((*words, name)))
    for group in app.registered_groups:
        group.cls = Group
        if group.typer_instance is not None:
            dress(group.typer_instance, (*words, str(group.name)))


def examples(command: str) -> str:
    """The examples as rich's markup. Lines that are apart stay lines."""
    lines = (line.replace("[", r"\[") for line in EXAMPLES[command])
    return "\n\n".join(("[bold]Examples[/bold]", *lines))


def _unwrapped(text: str) -> str:
    """Each paragraph on one line, for the terminal to wrap."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _plain(params: list[Any], ctx: Any) -> list[Any]:
    """A flag has no value, an argument's name says what it is, and a choice of many words is told in the help."""
    for param in params:
        if isinstance(param, TyperArgument) or getattr(param, "is_flag", False):
            param.display_type_rich = _shown_as("")
        shown = param.display_type_rich(ctx=ctx)
        if shown and "|" in shown and len(shown) > _WIDEST_CHOICE:
            param.metavar = param.opts[0].rpartition("-")[2].upper()
            words = shown.strip("<>").removeprefix("list").strip("[]").split("|")  # a list's are in brackets
            param.help = f"{param.help} One of {', '.join(words)}."
    return params


def _shown_as(word: str) -> Callable[..., str]:
    return lambda ctx: word  # noqa: ARG005  typer calls it


def _say(error: Exception, message: str) -> None:
    setattr(error, "message", message)  # noqa: B010  the class is typer's own
