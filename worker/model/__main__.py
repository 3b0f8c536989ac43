"""`python -m worker.model inspect | make | verify`: what `presswork model` runs, as a process of its own."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from services.core.model.errors import PressworkError
from worker.model import directory
from worker.model.presets import PRESETS


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; what goes wrong is one sentence and 1."""
    given = _parser().parse_args(arguments)
    try:
        report, line = given.command(given)
    except (PressworkError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write((json.dumps(report, indent=2) if given.json else line) + "\n")
        sys.stdout.flush()
    return 0


def inspect(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from worker.model import inspect

    told = inspect.inspect(directory.locate(given.dir))
    return told, inspect.table(told)


def make(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from worker.model.make import make

    revision = make(Path(given.dir), given.preset, given.seed, _say)
    report = {"directory": given.dir, "preset": given.preset, "seed": given.seed, "revision": revision}
    return report, f"{given.dir}: {given.preset}, {revision}"


def verify(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    folder = directory.locate(given.dir)
    from worker.model import checkpoint, inspect  # torch: after a directory that is not there was refused

    loaded = checkpoint.load(folder)
    parts = inspect.inspect(folder)["components"]
    parameters, tensors = (sum(part[key] for part in parts.values()) for key in ("parameters", "tensors"))
    report = {"directory": given.dir, "kind": loaded.index.kind, "revision": loaded.revision}
    counted = {"parameters": parameters, "tensors": tensors}
    whole = f"{loaded.index.kind}'s architecture, {loaded.revision}, {parameters:,} parameters in {tensors:,} tensors"
    return report | counted, f"{given.dir} is whole: {whole}"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.model", description="Inspect, make and verify models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, does in (
        (inspect, "say what a model is, without loading it"),
        (make, "write a model with random weights"),
        (verify, "load all of a model, strictly, and render nothing"),
    ):
        sub = commands.add_parser(command.__name__, help=does, description=does)
        sub.set_defaults(command=command)
        sub.add_argument("dir", metavar="DIR", help="the model's directory")
        sub.add_argument("--json", action="store_true", help="print JSON")
        if command is make:
            sub.add_argument("--preset", choices=list(PRESETS), default="tiny", help="which (default: tiny)")
            sub.add_argument("--seed", type=int, default=0, metavar="N", help="decides the weights (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
