"""Keeps variables that were set for other programs from libraries that read them on their own."""

import os


def forget(prefix: str) -> None:
    """Removes every variable that begins so from this process."""
    for name in [name for name in os.environ if name.startswith(prefix)]:
        del os.environ[name]
