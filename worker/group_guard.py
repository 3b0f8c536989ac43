"""Ends a process group when the process that leads it has ended, however it ended.

The kernel ends a process with its parent, but not what that process had started.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def tell_parent_death(number: int) -> None:
    """Has the kernel send this process the signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, number)


def main(arguments: Sequence[str]) -> None:
    leader = int(arguments[0])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    tell_parent_death(signal.SIGUSR1)
    while os.getppid() == leader:
        signal.sigwait({signal.SIGUSR1})
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
