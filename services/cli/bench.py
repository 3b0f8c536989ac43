"""`presswork bench ...`: figures of this machine, measured by processes of their own."""

import subprocess
import sys
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure what this machine can do.")


@app.command(
    "engine",
    add_help_option=False,  # the process knows its options
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def engine(options: Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS]")] = None) -> None:
    """Render the same batch with this engine and with stock diffusers, in turns (--help: its options)."""
    command = [sys.executable, "-m", "worker.bench", *(options or [])]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
