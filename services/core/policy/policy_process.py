"""One policy of prompts in a process of its own: it may hang, crash or be slow, and hinders no other.

Both sides of the pipe are here: one line of JSON asks about prompts, one line answers.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

from services.core import processes
from services.core.settings import Settings

GROUP = "presswork.prompt_policies"
Policy = Callable[[list[str]], Sequence[str | None]]
_WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)


class PolicyFailed(Exception):
    """A policy raised, gave no verdicts, did not answer in time, or its process ended."""


class _Late(PolicyFailed):
    """It did not answer in time."""


class PolicyProcess:
    """Not thread-safe. The process starts with the first question, and again after it ended: the question then waits
    no longer for it to open than for an answer, and a later one finds it open."""

    def __init__(self, name: str, seconds: float, start_seconds: float) -> None:
        self._name, self._seconds, self._start_seconds = name, seconds, start_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""
        self._is_open, self._was_open, self._open_until = False, False, 0.0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ask(self, prompts: list[str]) -> list[str | None]:
        """For each prompt the word that says why it is refused, or None. Raises PolicyFailed."""
        if self._has_ended():
            self._spawn()
        if not self._is_open:
            left = self._open_until - time.monotonic()
            self._wait_open(max(0.0, min(self._seconds, left) if self._was_open else left))
        try:
            said = self._exchange({"prompts": prompts}, self._seconds)
        except PolicyFailed:
            self.end()
            raise
        if why := said.get("why"):
            raise PolicyFailed(str(why))
        verdicts: list[str | None] = said["verdicts"]
        return verdicts

    def end(self) -> None:
        """Ends the process, also one that hangs, and all that it started."""
        process, self._process, self._is_open = self._process, None, False
        if process is not None:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def start(self) -> None:
        """Opens the policy. Raises PolicyFailed."""
        self._spawn()
        self._wait_open(self._start_seconds)

    def _has_ended(self) -> bool:
        """It is not reaped by this, so that its number, which is that of its group, is given to no other process."""
        if self._process is None or self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _spawn(self) -> None:
        self.end()
        self._open_until = time.monotonic() + self._start_seconds
        self._read = b""
        self._process = subprocess.Popen(
            processes.python(__name__, self._name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            start_new_session=True, env=Settings.without_secrets(os.environ),
        )  # fmt: skip
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def _wait_open(self, seconds: float) -> None:
        try:
            said = self._exchange(None, seconds)
        except PolicyFailed as failed:
            if isinstance(failed, _Late) and time.monotonic() < self._open_until:
                raise PolicyFailed("it is still being opened") from None
            self.end()
            raise
        if why := said.get("why"):
            self.end()
            raise PolicyFailed(str(why))
        self._is_open = self._was_open = True

    def _exchange(self, question: object, seconds: float) -> dict[str, Any]:
        """Sends a line, if there is a question, and reads one."""
        process, until = self._process, time.monotonic() + seconds
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            rest = b"" if question is None else json.dumps(question).encode() + b"\n"
            while rest:
                _wait(process.stdin.fileno(), select.POLLOUT, until)
                with suppress(BlockingIOError):
                    rest = rest[os.write(process.stdin.fileno(), rest) :]
            while b"\n" not in self._read:
                _wait(process.stdout.fileno(), select.POLLIN, until)
                if not (more := os.read(process.stdout.fileno(), 1 << 16)):
                    raise PolicyFailed("its process ended")
                self._read += more
            line, _, self._read = self._read.partition(b"\n")
            said: dict[str, Any] = json.loads(line)
        except TimeoutError:
            raise _Late(f"it did not answer within {seconds:.3g} s") from None
        except (OSError, ValueError):
            raise PolicyFailed("its process ended") from None
        return said


def _wait(pipe: int, event: int, until: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


def main(arguments: Sequence[str]) -> int:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a policy prints goes to the log

    def answer(said: dict[str, Any]) -> None:
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()

    try:
        policy = _open(arguments[0])
    except Exception as error:
        answer({"why": _why(error)})
        return 1
    answer({})
    for line in sys.stdin.buffer:
        prompts = json.loads(line)["prompts"]
        try:
            answer({"verdicts": _verdicts(policy, prompts)})
        except Exception as error:
            answer({"why": _why(error)})
    return 0


def _open(name: str) -> Policy:
    policy: Policy = next(iter(metadata.entry_points(group=GROUP, name=name))).load()()
    return policy


def _verdicts(policy: Policy, prompts: list[str]) -> list[str | None]:
    given = list(policy(list(prompts)))
    if len(given) != len(prompts):
        raise ValueError(f"{len(given)} verdicts for {len(prompts)} prompts")
    return [None if verdict is None else _word(verdict) for verdict in given]


def _word(verdict: object) -> str:
    return verdict if isinstance(verdict, str) and _WORD.fullmatch(verdict) else "refused"


def _why(error: Exception) -> str:
    """Never the error's own text: it may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119
    return f"it raised {type(error).__name__}{place}"


def _end_with(parent: int) -> None:
    """Ends this process when its parent has, whatever it is doing, and all that it started."""
    while os.getppid() == parent:
        time.sleep(1.0)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
