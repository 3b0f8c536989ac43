"""`python -m worker.pipelines.ai100 compile | check`: what `presswork ai100` runs in a separate process.

Settings that no option replaces are those of a worker; servers are not needed.
"""

import argparse
import os
import shlex
import sys
from dataclasses import replace

from services.core import terminal
from services.core.model.errors import PressworkError, SettingsError
from services.core.settings import Settings
from worker.model import directory
from worker.pipeline import artefacts
from worker.pipelines import cloud_ai100
from worker.pipelines.ai100 import cards, compiling
from worker.pipelines.ai100.programs import Programs, Target
from worker.pipelines.ai100.sdk import Sdk, SdkMissing

SERVERS = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. An error prints one sentence and returns 1."""
    options = _parser().parse_args(arguments)
    try:
        chosen = {"PRESSWORK_PIPELINE": "ai100", "PRESSWORK_MODEL_DIR": options.dir}
        chosen |= {"PRESSWORK_DEVICE": options.device} if options.device else {}
        return int(options.command(Settings.read(SERVERS | dict(os.environ) | chosen), options))
    except (PressworkError, OSError) as error:
        sys.stderr.write(terminal.printable(f"{error}\n"))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130


def compile_programs(settings: Settings, options: argparse.Namespace) -> int:
    """Compiles what a worker with these settings would, or prints the commands."""
    folder, sdk = directory.locate(settings.model_dir), Sdk(settings.ai100_sdk)
    target = _target(settings, sdk, options)
    index = directory.with_sizes(folder, directory.read_index(folder), settings.sizes)
    plan = cloud_ai100.plan_of(settings, target.card, index.default_steps, len(settings.device.split(",")))
    say(f"{target.card.name}, SDK {target.sdk_version}: {plan}")
    for batch in options.batch or [settings.ai100_program_batch]:
        programs = Programs(folder, artefacts(settings), target, batch)
        for network, cores in plan.programs:
            for chunks in programs.chunks_of(network):
                if options.dry_run:
                    say(shlex.join(programs.command(network, cores, chunks)))
                    continue
                for size in index.sizes:
                    found = programs.find(network, size, cores, chunks, say)
                    say(f"{network} {size[0]}x{size[1]}, batch {batch}, {cores} cores: {found / compiling.PROGRAM}")
    return 0


def check(settings: Settings, _options: argparse.Namespace) -> int:
    from worker.pipelines.ai100 import checks

    return checks.run(settings, say)


def say(line: str) -> None:
    sys.stdout.write(terminal.printable(line) + "\n")
    sys.stdout.flush()


def _target(settings: Settings, sdk: Sdk, options: argparse.Namespace) -> Target:
    """The device's, or that of the card that is named; without the SDK, commands are shown for a Standard."""
    card = options.card or ("standard" if options.dry_run and sdk.tool("qaic-util") is None else "")
    if not card:
        info = cloud_ai100.choose_devices(sdk.devices(), settings.device)[0]
        return cloud_ai100.target_of(settings, sdk, info)
    if card not in cards.CARDS:
        raise SettingsError(f"There is no card {card!r}; there are {', '.join(cards.CARDS)}.")
    overrides = compiling.read_overrides(settings.ai100_flags)
    target = Target(sdk, "", cards.CARDS[card], "ai100", overrides)
    try:
        return replace(target, sdk_version=sdk.version())
    except SdkMissing:
        if not options.dry_run:
            raise
        return replace(target, sdk_version="not installed")


def _batches(text: str) -> list[int]:
    if not text:
        return []
    sizes = [int(part) for part in text.split(",") if part.strip().isdigit() and 1 <= int(part) <= 64]
    if len(sizes) != len(text.split(",")):
        raise argparse.ArgumentTypeError("numbers of images from 1 to 64, such as 1,4")
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worker.pipelines.ai100")
    commands = parser.add_subparsers(required=True)
    compiler = commands.add_parser("compile")
    compiler.add_argument("--batch", type=_batches, default=[])
    compiler.add_argument("--card", default="")
    compiler.add_argument("--dry-run", action="store_true")
    compiler.set_defaults(command=compile_programs)
    checker = commands.add_parser("check")
    checker.set_defaults(command=check)
    for one in (compiler, checker):
        one.add_argument("--device", default="")
        one.add_argument("dir")
    return parser


if __name__ == "__main__":
    sys.exit(main())
