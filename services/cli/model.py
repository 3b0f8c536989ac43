"""`presswork model`: inspect, make and verify a model's directory, each in a process that may load torch."""

import subprocess
import sys
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Inspect, make and verify models.")

Folder = Annotated[str, typer.Argument(metavar="DIR", help="The model's directory, or its name on the hub.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def inspect(folder: Folder, json: Json = False) -> None:
    """Say what a model is, without loading it.

    Its kind, revision, defaults and the size of each network.
    """
    _run("inspect", folder, json)


@app.command()
def make(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where it goes: absent, or an empty directory.")],
    preset: Annotated[str, typer.Option(help="tiny, mini, full, sd15, or tiny-sd.")] = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="Decides the weights.")] = 0,
    json: Json = False,
) -> None:
    """Write a model with random weights, for tests and benchmarks.

    full and sd15 have the sizes of DeciDiffusion 2.0 and Stable Diffusion 1.5.
    """
    _run("make", folder, json, "--preset", preset, "--seed", str(seed))


@app.command()
def verify(folder: Folder, json: Json = False) -> None:
    """Load all of a model, strictly, and render nothing."""
    _run("verify", folder, json)


def _run(verb: str, folder: str, json: bool, *options: str) -> None:
    flags = ["--json"] if json else []
    command = [sys.executable, "-m", "worker.model", verb, *flags, *options, "--", folder]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
