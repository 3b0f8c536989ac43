"""The entry point of `presswork`. It imports only the core, so that it can say which extra is missing."""

import signal
import sys
from importlib import metadata

from services.core import extras

EXIT_USAGE = 2
# The extras that commands need in addition to `cli`, as far as is known before their options are parsed.
NEEDS = {
    "up": ("local",), "demo": ("local",), "model": ("cli", "worker"), "bench": ("cli", "worker", "torch"),
    "ai100": ("cli", "worker"),
}  # fmt: skip


def main() -> int:
    if extras.lacking("cli"):
        return _without_cli(sys.argv[1:])
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # Ctrl-C while modules load ends the process, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from services.cli.app import app

    signal.signal(signal.SIGINT, before)
    app(prog_name="presswork")
    return 0


def _without_cli(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"presswork {metadata.version(extras.DISTRIBUTION)}")  # noqa: T201
        return 0
    command = next((word for word in words if not word.startswith("-")), "")
    missing = extras.lacking(*NEEDS.get(command, ("cli",)))
    print(f"presswork: {extras.sentence(*missing)}", file=sys.stderr)  # noqa: T201
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
