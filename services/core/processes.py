"""How a process of ours starts another one of ours."""

import sys


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, whatever the current folder holds.

    Without `-P` a folder of the user's called `services`, `worker` or `migrations` would be imported in place of ours.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
