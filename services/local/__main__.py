"""`python -m services.local up|down|status`: what `presswork up`, `down` and `status` run as a process."""

import argparse
import logging
import os
import sys
import textwrap
import time
from pathlib import Path

from services.core import logs, terminal
from services.core.model import devices
from services.core.model.errors import PressworkError
from services.local.supervisor import read_running, stop_running
from services.local.up import WORKER_GRACE, UpOptions, up

EXIT_FAILED = 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m services.local")
    parser.add_argument("verb", choices=["up", "down", "status"])
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("PRESSWORK_HOME") or ".presswork"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pipeline", default=os.environ.get("PRESSWORK_PIPELINE") or "onnx")
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--model", action="append", default=[], dest="models")
    parser.add_argument("--devices", type=devices.parse, default=())
    arguments = parser.parse_args(argv)
    logs.configure("up", level=logging.WARNING)
    try:
        if arguments.verb == "up":
            models = tuple(arguments.models)
            options = UpOptions(
                arguments.home, arguments.workers, arguments.pipeline, models, arguments.stand_in, arguments.devices
            )
            up(options, os.environ, _say)
            return 0
        return _down(arguments.home) if arguments.verb == "down" else _status(arguments.home)
    except PressworkError as error:
        print(terminal.printable(f"presswork: {error}"), file=sys.stderr)  # noqa: T201
        return EXIT_FAILED


def _say(sentence: str) -> None:
    print(terminal.printable(f"{time.strftime('%H:%M:%S')}  {sentence}"), flush=True)  # noqa: T201


def _down(home: Path) -> int:
    _say("stopped" if stop_running(home, timeout=WORKER_GRACE + 30) else f"nothing runs on {home}")
    return 0


def _status(home: Path) -> int:
    running = read_running(home)
    if running is None:
        _say(f"nothing runs on {home}")
        return EXIT_FAILED
    where = f" at {running.url}" if running.url else ", starting its servers"
    _say(f"runs on {home}{where}, as process {running.supervisor.pid} for {time.time() - running.since:.0f} s")
    for name, process in {**running.servers, **running.programs}.items():
        state = "up" if process.alive() else "down"
        ports = ", ".join(f"{use} {port}" for use, port in process.ports.items())
        line = textwrap.fill(f"{name:<11} {state:<5} pid {process.pid:<8} {ports}", 79, initial_indent="  ",
                             subsequent_indent=" " * 33)  # fmt: skip
        print(line.rstrip(), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
