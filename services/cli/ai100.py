"""`presswork ai100`: a model for Qualcomm Cloud AI 100, in separate processes that may load torch."""

from typing import Annotated

import typer

from services.cli.exits import guarded
from services.core import extras
from services.core.processes import python, run

Folder = Annotated[str, typer.Argument(metavar="DIR", help="The model's directory, or its name on the hub.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="qaic:0, say; by default PRESSWORK_DEVICE or the first one.")]
app = typer.Typer(no_args_is_help=True, help="Bring a model to Qualcomm Cloud AI 100.")


@app.command()
@guarded
def export(
    folder: Folder,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Absent, or an empty directory; by default the model's name and -ai100.",
        ),
    ] = "",
    batch: Annotated[str, typer.Option(metavar="N,N...", help="How many images a pass renders.")] = "1",
    size: Annotated[str, typer.Option(metavar="WxH", help="In pixels; by default the model's own.")] = "",
    precision: Annotated[str, typer.Option(metavar="NAME", help="fp32 or fp16.")] = "fp32",
    chunks: Annotated[
        str, typer.Option(metavar="N,N...", help="Lengths of prompts, of a model that reads long ones.")
    ] = "1",
    image_to_image: Annotated[bool, typer.Option("--image-to-image", help="Export the VAE's encoder, too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> int:
    """Write a model's networks as ONNX graphs of fixed shapes, with a manifest.

    OUT appears complete or not at all. A full-size model takes a minute or several.
    """
    extras.require("worker", "onnx")
    flags = [*(["--image-to-image"] if image_to_image else []), *(["--json"] if json else [])]
    given = {"batch": batch, "size": size, "precision": precision, "chunks": chunks, "output": output}
    options = [f"--{name}={value}" for name, value in given.items()]  # in one word, since a value may begin with a dash
    return run(python("worker.model", "export", *flags, *options, "--", folder))


@app.command("compile")
@guarded
def compile_programs(
    folder: Folder,
    batch: Annotated[str, typer.Option(metavar="N,N...", help="Images a pass; by default a worker's.")] = "",
    card: Annotated[str, typer.Option(metavar="NAME", help="standard, pro or ultra; by default this machine's.")] = "",
    device: Device = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands; needs neither card nor SDK.")] = False,
) -> int:
    """Compile a model's programs, as a worker with these settings would, and keep them in PRESSWORK_ARTEFACTS.

    Needs the Apps SDK. The compiler's lines are shown as they come; what is there already is not compiled again.
    """
    flags = ["--dry-run"] if dry_run else []
    return _run("compile", folder, device, "--batch", batch, "--card", card, *flags)


@app.command()
@guarded
def check(folder: Folder, device: Device = "") -> int:
    """Run all that could not be tried without a card, in one table beside what it should be."""
    return _run("check", folder, device)


def _run(verb: str, folder: str, device: str, *options: str) -> int:
    extras.require("worker", "onnx")
    return run(python("worker.pipelines.ai100", verb, *options, "--device", device, "--", folder))
