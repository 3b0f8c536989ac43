"""`presswork bench ...`: benchmarks of this machine, each in a separate process."""

from typing import Annotated

import typer

from services.cli.exits import guarded
from services.core import extras
from services.core.processes import python, run

app = typer.Typer(no_args_is_help=True, help="Measure what this machine can do.")


@app.command(
    "engine",
    add_help_option=False,  # the process knows its options
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@guarded
def engine(options: Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS]")] = None) -> int:
    """Render the same batch with this engine and with stock diffusers, alternately (--help: its options)."""
    extras.require("worker", "torch")
    return run(python("worker.bench", *(options or [])))
