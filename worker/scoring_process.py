"""Scorers in a process of their own, which scores the pictures that come on its standard input.

A scorer there may hang, take the memory of the machine or crash: the worker ends the process and starts another. Both
sides of the pipe are in this file.
"""

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from services.core import processes
from services.core.settings import Settings
from worker import scorer

START_SECONDS = 300.0
_HEAD = struct.Struct("<III")  # height, width, bytes of the prompt
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
Told = Callable[[str, float | int | None, str], None]  # a scorer's name, its number or None, why it failed


class ProcessEnded(Exception):
    """The process ended, or did not answer in time and was ended. `name`: the scorer that was at work."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class ScoringProcess:
    """A child process with some scorers. One thread uses it, which must live as long: the kernel ends the child with
    the thread that started it."""

    def __init__(self, names: Sequence[str], options: dict[str, Any]) -> None:
        secrets = {name for name, is_secret in Settings.variables().items() if is_secret}
        hidden = secrets | {f"{name}_FILE" for name in secrets}
        self.names = tuple(names)
        self._process = subprocess.Popen(
            processes.python("worker.scoring_process", json.dumps(options), *names),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name not in hidden},
        )  # fmt: skip

    def wait_ready(self) -> dict[str, str]:
        """Why each scorer that cannot be opened cannot; returns when the others are ready. Raises ProcessEnded."""
        failed: dict[str, str] = {}
        self._exchange(self.names, START_SECONDS, lambda name, _, why: failed.update({name: why} if why else {}))
        return failed

    def score(self, pixels: NDArray[np.uint8], prompt: str, seconds: float, told: Told) -> None:
        """Tells each scorer's number as it comes. Raises ProcessEnded if they take longer than `seconds`."""
        words = prompt.encode("utf-8", "replace")
        head = _HEAD.pack(*pixels.shape[:2], len(words))
        self._exchange(self.names, seconds, told, head, words, np.ascontiguousarray(pixels).data)

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                assert pipe is not None
                pipe.close()
            except OSError:  # it had not read all that was written
                pass
        self._process.wait()

    def _exchange(self, names: Sequence[str], seconds: float, told: Told, *parts: bytes | memoryview) -> None:
        """Sends the parts and reads one line for each name. The timer also ends a write that does not end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        awaited = list(names)
        try:
            for part in parts:
                self._process.stdin.write(part)
            self._process.stdin.flush()
            while awaited:
                line = self._process.stdout.readline()
                if not line:
                    break
                said = json.loads(line)
                told(awaited.pop(0), said["value"], said["why"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it ended, or wrote what is no answer
        finally:
            was_late = not timer.is_alive()
            timer.cancel()
        if awaited:
            self.end()
            raise ProcessEnded(awaited[0], _how_it_ended(self._process.returncode, seconds, was_late=was_late))


def main(arguments: Sequence[str]) -> int:
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which finishes its batch
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a scorer prints goes to the log
    options, names = json.loads(arguments[0]), arguments[1:]
    scorers: dict[str, scorer.Scorer | None] = {}
    for name in names:
        scorers[name] = None
        with _answered(answers) as opened:
            scorers[name] = scorer.open_scorer(name, **options.get(name, {}))
            opened.value = 1
    while picture := _read(sys.stdin.buffer):
        for name in names:
            score = scorers[name]
            with _answered(answers) as scored:
                if score is None:
                    raise scorer.Rubbish("it could not be opened")
                scored.value = scorer.value(name, score(*picture))
    return 0


class _answered:  # noqa: N801  reads as a statement
    """Answers with the value that the block sets, or with why it failed."""

    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers
        self.value: float | int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is not None and not isinstance(error, Exception | SystemExit):
            return False
        said = {"value": None if error else self.value, "why": scorer.reason(error) if error else ""}
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
