"""`python -m worker.model inspect | make | merge | verify | export`: what `presswork model` and `presswork ai100` run.

It is a separate process, since it may load torch.
"""

import argparse
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from services.core import terminal
from services.core.model.errors import PressworkError, SettingsError
from services.core.settings import parse_sizes
from worker.model import directory
from worker.model.presets import PRESETS


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. An error prints one sentence and returns 1."""
    options = _parser().parse_args(arguments)
    try:
        report, line = options.command(options)
    except (PressworkError, OSError) as error:
        sys.stderr.write(terminal.printable(f"{error}\n"))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write((json.dumps(report, indent=2) if options.json else terminal.printable(line)) + "\n")
        sys.stdout.flush()
    return 0


def inspect(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from worker.model import inspect

    facts = inspect.inspect(directory.locate(options.dir))
    return facts, inspect.table(facts)


def make(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from worker.model.make import make

    revision = make(Path(options.dir), options.preset, options.seed, _say)
    report = {"directory": options.dir, "preset": options.preset, "seed": options.seed, "revision": revision}
    return report, f"{options.dir}: {options.preset}, {revision}"


def merge(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    folder = directory.locate(options.dir)
    from worker.model import merge as merging  # imports torch

    done = merging.merge(
        folder, options.loras, Path(options.output), name=options.name, partial=options.partial, say=_say
    )
    return done, merging.table(done)


def verify(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    folder = directory.locate(options.dir)
    from worker.model import checkpoint, inspect  # imports torch, so only once the directory is known to exist
    from worker.model import verify as verification

    loaded = checkpoint.load(folder)
    verification.verify(loaded)
    parts = inspect.inspect(folder)["components"]
    parameters, tensors = (sum(part[key] for part in parts.values()) for key in ("parameters", "tensors"))
    report = {"directory": options.dir, "kind": loaded.index.kind, "revision": loaded.revision}
    counted = {"parameters": parameters, "tensors": tensors}
    whole = f"{loaded.index.kind}'s architecture, {loaded.revision}, {parameters:,} parameters in {tensors:,} tensors"
    return report | counted, f"{options.dir} is whole: {whole}"


def export(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    batches, chunks = _numbers("--batch", options.batch), _numbers("--chunks", options.chunks)
    size = _size(options.size) if options.size else None
    folder = directory.locate(options.dir)
    index = directory.read_index(folder)
    out = Path(options.output or f"{Path(index.name).name}-ai100")
    from worker.model import static_export  # imports torch

    done = static_export.export(
        folder, out, size=size or index.default_size, batches=batches, precision=options.precision, chunks=chunks,
        image_to_image=options.image_to_image, say=_say,
    )  # fmt: skip
    return {"directory": str(out)} | done.to_json(), f"{out}: {done.table()}"


def _numbers(option: str, text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text):
        raise SettingsError(f"{option} is {text!r}; it must be whole numbers with commas between them, such as 1,4.")
    return [int(part) for part in text.split(",")]


def _size(text: str) -> tuple[int, int]:
    try:
        (size,) = parse_sizes(text)
    except ValueError:
        raise SettingsError(f"--size is {text!r}; it must be one size in pixels, such as 512x512.") from None
    return size


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.model", description="Inspect, make and verify models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, does in (
        (inspect, "describe a model without loading it"),
        (make, "write a model with random weights"),
        (merge, "write a model with LoRAs merged into it"),
        (verify, "load a whole model strictly, look for damaged numbers and draw one small picture twice"),
        (export, "write a model as ONNX graphs for an accelerator's compiler"),
    ):
        sub = commands.add_parser(command.__name__, help=does, description=does)
        sub.set_defaults(command=command)
        sub.add_argument("dir", metavar="DIR", help="the model's directory")
        sub.add_argument("--json", action="store_true", help="print JSON")
        if command is make:
            sub.add_argument("--preset", choices=list(PRESETS), default="tiny", help="which (default: tiny)")
            sub.add_argument("--seed", type=int, default=0, metavar="N", help="decides the weights (default: 0)")
        if command is merge:
            sub.add_argument(
                "loras", nargs="+", metavar="LORA[:WEIGHT]", help="safetensors files, merged in this order"
            )
            sub.add_argument("-o", "--output", required=True, metavar="NEW", help="the new model's directory")
            sub.add_argument("--name", default="", help="the new model's name (default: its directory's)")
            sub.add_argument("--partial", action="store_true", help="leave out what does not fit, and list it")
        if command is export:
            sub.add_argument("--batch", default="1", metavar="N,N", help="how many images a pass renders (default: 1)")
            sub.add_argument("--size", default="", metavar="WxH", help="in pixels (default: the model's)")
            sub.add_argument("--precision", default="fp32", metavar="NAME", help="fp32 or fp16 (default: fp32)")
            sub.add_argument("--chunks", default="1", metavar="N,N", help="lengths of prompts, in chunks (default: 1)")
            sub.add_argument("--image-to-image", action="store_true", help="export the VAE's encoder, too")
            sub.add_argument(
                "-o", "--output", default="", metavar="OUT", help="the new directory (default: NAME-ai100)"
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
