"""How one Presswork process starts another."""

import sys


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a Presswork module, whatever the current folder contains.

    Without `-P`, a user's folder called `services`, `worker` or `migrations` would be imported instead of Presswork's.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
