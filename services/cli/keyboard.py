"""Single keys of a terminal, read without waiting for Enter."""

import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.cli.exits import Usage

_NAMES = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down", "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\r": "enter", "\n": "enter", "\x1b": "escape",
}  # fmt: skip
_KEY = re.compile(r"\x1b\[[0-9;?]*[A-Za-z~]|\x1bO[A-Z]|.", re.DOTALL)
END = "end"  # the terminal is gone


@contextmanager
def keys() -> Iterator[Callable[[float], list[str]]]:
    """What waits for so many seconds and returns the keys pressed: a character, or up, down, enter, escape, or END.

    Ctrl-C interrupts as ever; Ctrl-Z is off, since the screen would stay as it is. Raises Usage without a terminal.
    """
    try:
        import termios
    except ImportError:
        raise Usage("Keys cannot be read from this kind of terminal.") from None
    if not sys.stdin.isatty():
        raise Usage("This command takes keys, and its input is not a terminal.")
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    mode = termios.tcgetattr(descriptor)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    mode[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
    try:
        yield lambda seconds: _pressed(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(descriptor: int, seconds: float) -> list[str]:
    if not select.select([descriptor], [], [], seconds)[0]:
        return []
    try:
        typed = os.read(descriptor, 256)
    except OSError:  # the terminal was closed
        typed = b""
    return parsed(typed.decode(errors="replace")) if typed else [END]


def parsed(typed: str) -> list[str]:
    """The keys behind what a terminal sends."""
    return [_NAMES.get(key, key) for key in _KEY.findall(typed)]
