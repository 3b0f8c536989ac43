"""Scorers in a process of their own, which scores the pictures that come on its standard input.

A scorer there may hang, take the memory of the machine or crash: the worker ends the process, with all that it
started, and starts another. Both sides of the pipe are in this file.
"""

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from services.core import processes
from services.core.settings import Settings
from worker import group_guard, scorer

START_SECONDS = 300.0
_HEAD = struct.Struct("<III")  # height, width, bytes of the prompt
Told = Callable[[str, Any, str], None]  # a scorer's name, its number or None, why it failed


class ProcessEnded(Exception):
    """The process ended, or did not answer in time and was ended. `name`: the scorer that was at work."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class ScoringProcess:
    """A child process with some scorers, and the group of all processes that they start. One thread uses it, which must
    live as long: the kernel ends the child with the thread that started it. Any thread may end it."""

    def __init__(self, names: Sequence[str], options: dict[str, Any], module: str = "worker.scoring_process") -> None:
        self.names = tuple(names)
        self._process = subprocess.Popen(
            processes.python(module, json.dumps(options), *names),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
            env=Settings.without_secrets(os.environ),
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self._gone = os.pidfd_open(self._process.pid)  # what a scorer forked may keep the pipe open for ever
        self._read = b""
        self._using = threading.RLock()  # the pipes

    def wait_ready(self) -> dict[str, str]:
        """Why each scorer that cannot be opened cannot; returns when the others are ready. Raises ProcessEnded."""
        failed: dict[str, str] = {}
        self._exchange(self.names, START_SECONDS, lambda name, _, why: failed.update({name: why} if why else {}))
        return failed

    def score(self, pixels: NDArray[np.uint8], prompt: str, seconds: float, told: Told) -> None:
        """Tells each scorer's number as it comes. Raises ProcessEnded if one of them takes longer than `seconds`."""
        words = prompt.encode("utf-8", "replace")
        head = _HEAD.pack(*pixels.shape[:2], len(words))
        self._exchange(self.names, seconds, told, head, words, np.ascontiguousarray(pixels).data.cast("B"))

    def end(self) -> None:
        """Ends every process of the group. An exchange in another thread ends with it."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with self._using:
            if self._gone >= 0:
                os.close(self._gone)
                self._gone = -1
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()

    def _exchange(self, names: Sequence[str], seconds: float, told: Told, *parts: bytes | memoryview) -> None:
        """Sends the parts and reads one line for each name, each of which has `seconds`."""
        awaited, was_late = list(names), False
        with self._using:
            try:
                until = time.monotonic() + seconds
                for part in parts:
                    self._write(part, until)
                while awaited:
                    said = json.loads(self._line(until))
                    told(awaited[0], said["value"], said["why"])
                    awaited.pop(0)
                    until = time.monotonic() + seconds
            except TimeoutError:
                was_late = True
            except (OSError, EOFError, ValueError, KeyError, TypeError):
                pass  # it ended, or wrote what is no answer
        if awaited:
            self.end()
            raise ProcessEnded(awaited[0], _how_it_ended(self._process.returncode, seconds, was_late=was_late))

    def _write(self, part: bytes | memoryview, until: float) -> None:
        rest = memoryview(part)
        while rest:
            self._wait(self._to, select.POLLOUT, until)
            with suppress(BlockingIOError):
                rest = rest[os.write(self._to, rest) :]

    def _line(self, until: float) -> bytes:
        while b"\n" not in self._read:
            self._wait(self._from, select.POLLIN, until)
            if not (more := os.read(self._from, 65_536)):
                raise EOFError
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _wait(self, pipe: int, event: int, until: float) -> None:
        """Waits until the pipe can be used. Raises TimeoutError, or EOFError when the process is gone."""
        if self._gone < 0:
            raise EOFError
        poll = select.poll()
        poll.register(pipe, event)
        poll.register(self._gone, select.POLLIN)
        ready = [place for place, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000)]
        if not ready:
            raise TimeoutError
        if pipe not in ready:
            raise EOFError


def main(arguments: Sequence[str]) -> int:
    return serve(arguments, scorer.open_scorer, scorer.value, scorer.reason)


def serve(
    arguments: Sequence[str],
    opening: Callable[..., scorer.Scorer],
    value: Callable[[str, Any], Any],
    reason: Callable[[BaseException], str],
) -> int:
    """Opens what the arguments name and answers until the worker ends: `value` of what each gives, or the `reason`."""
    group_guard.tell_parent_death(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # both are for the worker, which finishes its batch
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    guard = processes.python("worker.group_guard", str(os.getpid()))
    subprocess.Popen(guard, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a scorer prints goes to the log
    options, names = json.loads(arguments[0]), arguments[1:]
    scorers: dict[str, scorer.Scorer | None] = {}
    for name in names:
        scorers[name] = None
        with _answered(answers, reason) as opened:
            scorers[name] = opening(name, **options.get(name, {}))
            opened.value = 1
    while picture := _read(sys.stdin.buffer):
        for name in names:
            score = scorers[name]
            with _answered(answers, reason) as scored:
                if score is None:
                    raise scorer.Rubbish("it could not be opened")
                scored.value = value(name, score(*picture))
    return 0


class _answered:  # noqa: N801  reads as a statement
    """Answers with the value that the block sets, or with why it failed."""

    def __init__(self, answers: IO[bytes], reason: Callable[[BaseException], str]) -> None:
        self._answers, self._reason = answers, reason
        self.value: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is not None and not isinstance(error, Exception | SystemExit):
            return False
        said = {"value": None if error else self.value, "why": self._reason(error) if error else ""}
        self._answers.write(json.dumps(said).encode() + b"\n")
        self._answers.flush()
        return True


def _read(pipe: IO[bytes]) -> tuple[NDArray[np.uint8], str] | None:
    """The next picture and its prompt; None: the worker has ended."""
    head = pipe.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    height, width, words = _HEAD.unpack(head)
    prompt = pipe.read(words).decode()
    pixels = np.frombuffer(pipe.read(height * width * 3), dtype=np.uint8)
    return pixels.reshape(height, width, 3), prompt


def _how_it_ended(code: int, seconds: float, *, was_late: bool) -> str:
    if was_late:
        return f"it did not answer within {seconds:g} s"
    return f"its process ended with {f'signal {-code}' if code < 0 else f'code {code}'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
