"""`presswork model`: inspects, makes, merges and verifies models, in a separate process that may load torch."""

from collections.abc import Sequence
from typing import Annotated

import typer

from services.cli import model_move, options, show
from services.cli.exits import Usage, guarded
from services.cli.profile import connect
from services.core import extras
from services.core.processes import python, run

app = typer.Typer(no_args_is_help=True, help="Inspect, make, merge and verify models.")

Folder = Annotated[str, typer.Argument(metavar="DIR", help="The model's directory, or its name on the hub.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
@guarded
def inspect(folder: Folder, json: Json = False) -> int:
    """Describe a model without loading it.

    Shows the kind, revision, defaults and the size of each network.
    """
    extras.require("worker")
    return _run("inspect", folder, json)


@app.command()
@guarded
def make(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where it goes: absent, or an empty directory.")],
    preset: Annotated[str, typer.Option(metavar="NAME", help="tiny, mini, full, sd15, or tiny-sd.")] = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="Decides the weights.")] = 0,
    json: Json = False,
) -> int:
    """Write a model with random weights, for tests and benchmarks.

    Presets full and sd15 have the sizes of DeciDiffusion 2.0 and Stable Diffusion 1.5.
    """
    extras.require("worker", "torch")
    return _run("make", folder, json, "--preset", preset, "--seed", str(seed))


@app.command()
@guarded
def merge(
    folder: Folder,
    loras: Annotated[
        list[str],
        typer.Argument(metavar="LORA[:WEIGHT]...", help="Safetensors files, each with its weight: a.safetensors:0.8"),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="NEW", help="The new model's directory.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="The new model's name; by default its directory's.")] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out what does not fit the model, and list it.")
    ] = False,
    json: Json = False,
) -> int:
    """Merge LoRAs into a model, as a new one.

    Reads the layouts of kohya, diffusers and PEFT. What was merged stands in the new directory.
    """
    extras.require("worker", "torch")
    options = ["--output", output, *(["--name", name] if name else []), *(["--partial"] if partial else [])]
    return _run("merge", folder, json, *options, more=loras)


@app.command("accept-license")
@guarded
def accept_license(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name, as `presswork models` lists it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Show a model's licence and what it forbids, and accept it for the tenant.

    Who accepted it and when is recorded, and stands in exports. Takes a key with the scope admin.
    """
    with connect(profile) as client:
        known = {one["id"]: one for one in client.models()}
        if model not in known:
            raise Usage(f"There is no model {model[:80]!r}; there are {', '.join(sorted(known)) or 'none yet'}.")
        named = known[model]["license"]
        if named is None:
            raise Usage(f"The card of {model} names no licence: there is nothing to accept.")
        if not as_json:
            show.say(f"{named['name']} {named['link']}".rstrip())
            for rule in named["restrictions"]:
                show.say(f"  must not be used for {rule}")
        if named["accepted"] is None and not yes and not as_json:
            typer.confirm("Accept it?", abort=True, err=True)
        found = client.accept_license(model, named["sha256"])["license"]
    if as_json:
        show.document(found)
    elif found is not None and found["accepted"] is not None:
        by = found["accepted"]["by_name"] or found["accepted"]["by"]
        show.say(f"accepted by {by} on {found['accepted']['at']}")


@app.command()
@guarded
def verify(folder: Folder, json: Json = False) -> int:
    """Load a whole model strictly, without rendering."""
    extras.require("worker", "torch")
    return _run("verify", folder, json)


app.command("move")(guarded(model_move.move))


def _run(verb: str, folder: str, json: bool, *options: str, more: Sequence[str] = ()) -> int:
    flags = ["--json"] if json else []
    return run(python("worker.model", verb, *flags, *options, "--", folder, *more))
