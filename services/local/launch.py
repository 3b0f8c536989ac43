"""Executes a program that dies with its parent. Run as a script that needs only the standard library.

    launch.py PARENT SIGNAL IDENTITY [program argument...]

PARENT is the expected parent pid, SIGNAL what the kernel sends when that process dies. IDENTITY is `same`,
`inner:UID` (that uid inside a user namespace; outside it files keep their owner) or `user:UID` (root becomes it).
"""

import os
import signal
import sys
from ctypes import CDLL, get_errno  # imported here: after `become`, Python's library may not be readable

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
ORPHANED, NO_NAMESPACE, NO_PROGRAM = 120, 121, 127


def main() -> None:
    parent, death_signal = int(sys.argv[1]), int(sys.argv[2])
    kind, _, uid = sys.argv[3].partition(":")
    program = sys.argv[4:]
    if kind == "inner":
        enter_namespace(int(uid))
    elif kind == "user":
        become(int(uid))
    if sys.platform == "linux":
        die_with_parent(death_signal)  # last, since a change of credentials clears it
        if os.getppid() != parent:
            sys.exit(ORPHANED)
    if not program:  # the caller only checks that the identity can be taken
        return
    # Python ignores these two signals, and an ignored signal stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)  # noqa: S606 - on purpose
    except OSError as error:
        sys.stderr.write(f"{program[0]} cannot be run: {error.strerror}\n")
        sys.exit(NO_PROGRAM)


def enter_namespace(inner_uid: int) -> None:
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    try:
        if CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
            raise OSError(get_errno(), os.strerror(get_errno()))
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{inner_uid} {outer_uid} 1"),
            ("gid_map", f"{inner_uid} {outer_gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib is slow to load
                file.write(line)
    except OSError as error:
        sys.stderr.write(f"no user namespace: {error.strerror}\n")
        sys.exit(NO_NAMESPACE)


def become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def die_with_parent(death_signal: int) -> None:
    CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)


if __name__ == "__main__":
    main()
