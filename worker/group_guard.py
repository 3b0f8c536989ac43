"""Ends processes with the one that they belong to, however that one ended.

    group_guard LEADER                  ends its process group when the process that leads it has ended
    group_guard with PARENT PROGRAM...  becomes a program that the kernel ends with its parent

The kernel ends a process with its parent, but not what that process had started.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from services.core import processes

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_WITH = "with"
_NOT_RUN = 127  # as a shell says it


def tell_parent_death(number: int) -> None:
    """Has the kernel send this process the signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, number)


def bound(command: Sequence[object]) -> list[str]:
    """The command that runs a program which ends with this process, or with the thread that starts it."""
    return processes.python(f"{__package__}.group_guard", _WITH, str(os.getpid()), *map(str, command))


def _become(parent: int, command: list[str]) -> None:
    tell_parent_death(signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        return
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores
    try:
        os.execv(command[0], command)  # noqa: S606 - on purpose
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run: {error.strerror}\n")
        sys.exit(_NOT_RUN)


def main(arguments: Sequence[str]) -> None:
    if arguments[0] == _WITH:
        _become(int(arguments[1]), list(arguments[2:]))
        return
    leader = int(arguments[0])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    tell_parent_death(signal.SIGUSR1)
    while os.getppid() == leader:
        signal.sigwait({signal.SIGUSR1})
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
