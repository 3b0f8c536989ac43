"""How one Presswork process starts another."""

import subprocess
import sys


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a Presswork module, whatever the current folder contains.

    Without `-P`, a user's folder called `services`, `worker` or `migrations` would be imported instead of Presswork's.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def run(command: list[str]) -> int:
    """Runs the command and returns its exit code.

    Ctrl-C reaches the command, too; this waits until it has tidied up. `subprocess.run` would kill it a moment later.
    """
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
