"""Policies of rendered pictures: entry points of the group `presswork.image_policies`, asked before one is stored.

Each runs in a process of its own, as scorers do (`scoring_process.py`). Unlike a score, a verdict is waited for: what
cannot be judged is not stored, unless the settings say to accept it.
"""

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import REFUSED_BY_CHECKER, REFUSED_BY_POLICY, PolicyUnavailable, SettingsError
from services.core.model.specs import FailedImage, Image
from services.core.settings import Settings
from worker import scoring_process
from worker.pipeline import Picture
from worker.scoring_process import ProcessEnded, ScoringProcess

log = logging.getLogger(__name__)
GROUP = "presswork.image_policies"
TRIES = 3  # before it is asked about a plain picture, to know whether this one is at fault
SUSPICIONS = 2  # how often in a row they must fail at this picture and then judge the plain one
PAUSE_SECONDS = 0.2
_MOST_SECONDS = 5.0
_WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
_PLAIN = np.full((64, 64, 3), 128, np.uint8)
_BY_CHECKER = "The model's safety checker refuses the picture."
_FAILS = "A content policy fails whenever it looks at this picture, so the picture was not stored."


class PolicyFailed(Exception):
    """A policy raised, gave no verdict, did not answer in time, or its process ended."""


class Unjudged(Exception):
    """The policies cannot be asked for now: the image is to be released."""


class Judging:
    """The chosen policies, and the safety checker's verdict where the settings say that it refuses. Any thread may ask.

    Raises:
        SettingsError: a policy that is chosen is not there or cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        check(settings)
        self._names, self._seconds = settings.image_policies, settings.policy_seconds
        self._refuses = settings.policy_fault == "refuse"
        self._checker_refuses = settings.safety_checker == "refuse"
        self._processes: dict[str, ScoringProcess] = {}  # one for each policy, so that none hinders another
        self._guard = threading.Lock()
        self._is_closed = False
        self._fault = ""  # the last one, unless a verdict came since
        self._is_away = False
        self._turns = ThreadPoolExecutor(1, "judge") if self._names else None
        if self._turns is not None:
            try:
                self._turns.submit(lambda: [self._start(name) for name in self._names]).result()
            except PolicyFailed as failed:
                self.close()
                raise SettingsError(f"A policy of PRESSWORK_IMAGE_POLICIES cannot be opened: {failed}.") from None

    @property
    def trouble(self) -> str:
        """Why no verdict can be had now, for people; empty while nothing is known to be wrong."""
        return f"waits for a content policy ({self._fault or 'no verdict in time'})" if self._is_away else ""

    def check(self) -> None:
        """If the policies were away, asks them about a plain picture, so that nothing is rendered in vain. Raises
        PolicyUnavailable."""
        if self._is_away and not self._judges_others(time.monotonic() + self._seconds * len(self._names)):
            raise PolicyUnavailable

    def refusal(
        self, image: Image, picture: Picture, goes_on: Callable[[], bool], *, until: float
    ) -> FailedImage | None:
        """Why the picture must not be stored; None: it may. Tries again while `goes_on()`, and waits for no verdict
        after `until`, by the monotonic clock.

        A picture is at fault if the policies fail at it, then judge a plain one, and do both once more. One such pair
        says nothing: an outage may have ended in between.

        Raises:
            Unjudged: the policies cannot be asked, and the settings say to refuse then.
        """
        if self._checker_refuses and picture.flagged:
            return FailedImage(image.job_id, image.index, REFUSED_BY_CHECKER, _BY_CHECKER)
        if self._turns is None:
            return None
        words = _described(image)
        pause, tries, suspicions = PAUSE_SECONDS, 0, 0
        while True:
            try:
                verdict = self._ask(picture.pixels, words, until)
            except PolicyFailed as failed:
                tries += 1
                log.warning("image policy failed", extra={"why": str(failed), "refuses": self._refuses, "tries": tries})
                if not self._refuses:
                    return None
                if tries >= TRIES:
                    suspicions = suspicions + 1 if self._judges_others(until) else 0
                if (tries >= TRIES and not suspicions) or time.monotonic() >= until:
                    self._is_away = True
                if suspicions >= SUSPICIONS:
                    return FailedImage(image.job_id, image.index, "policy_failed", _FAILS)
                if not goes_on():
                    raise Unjudged from None
                time.sleep(pause)
                pause = min(2 * pause, _MOST_SECONDS)
                continue
            if verdict is None:
                return None
            message = f"The picture was refused by a content policy: {verdict}."
            return FailedImage(image.job_id, image.index, REFUSED_BY_POLICY, message)

    def close(self) -> None:
        """Ends the process, also one that hangs."""
        if self._turns is not None:
            self._turns.shutdown(wait=False, cancel_futures=True)
        with self._guard:
            self._is_closed, processes = True, list(self._processes.values())
        for process in processes:
            process.end()

    def _judges_others(self, until: float) -> bool:
        try:
            self._ask(_PLAIN, json.dumps({"prompt": "", "negative_prompt": ""}), until)
        except PolicyFailed:
            return False
        return True

    def _ask(self, pixels: NDArray[np.uint8], words: str, until: float) -> str | None:
        """Others may wait for the process too. What is not answered by `until` counts as failed."""
        assert self._turns is not None
        try:
            asked = self._turns.submit(self._answer, pixels, words)
        except RuntimeError:  # it is closed: the worker stops
            raise PolicyFailed("the worker stops") from None
        try:
            verdict = asked.result(min(max(until - time.monotonic(), 0.0), threading.TIMEOUT_MAX))
        except TimeoutError:
            asked.cancel()
            raise PolicyFailed("no verdict in time") from None
        except PolicyFailed as failed:
            self._fault = str(failed)
            raise
        self._fault, self._is_away = "", False
        return verdict

    def _answer(self, pixels: NDArray[np.uint8], words: str) -> str | None:
        """In the thread of the processes. Whatever one refuses is refused, whichever others fail."""
        failed: list[PolicyFailed] = []
        for name in self._names:
            try:
                if refused := self._verdict_of(name, pixels, words):
                    return refused
            except PolicyFailed as error:
                failed.append(error)
        if failed:
            raise failed[0]
        return None

    def _verdict_of(self, name: str, pixels: NDArray[np.uint8], words: str) -> str:
        """The word of one policy. A process that ends under it is started again for the next picture. Raises
        PolicyFailed."""
        found: list[tuple[str, str]] = []
        process = self._processes.get(name) or self._start(name)
        try:
            process.score(pixels, words, self._seconds, lambda _, given, why: found.append((given, why)))
        except ProcessEnded as ended:
            self._forget(name)
            raise PolicyFailed(f"{name}: {ended}") from None
        [(verdict, why)] = found
        if why:
            raise PolicyFailed(f"{name}: {why}")
        return verdict

    def _start(self, name: str) -> ScoringProcess:
        """Raises PolicyFailed."""
        with self._guard:
            if self._is_closed:
                raise PolicyFailed("the worker stops")
            try:
                process = self._processes[name] = ScoringProcess([name], {}, module=__name__)
            except OSError as error:
                raise PolicyFailed(f"the machine lets no process start ({error.strerror})") from None
        try:
            why = process.wait_ready().get(name)
        except ProcessEnded as ended:
            why = str(ended)
        if why:
            process.end()
            self._forget(name)
            raise PolicyFailed(f"{name}: {why}")
        return process

    def _forget(self, name: str) -> None:
        with self._guard:
            self._processes.pop(name, None)


def check(settings: Settings) -> None:
    """Raises SettingsError unless each chosen policy is installed."""
    brought = {entry.name for entry in metadata.entry_points(group=GROUP)}
    for name in settings.image_policies:
        if name not in brought:
            known = f"; there are {', '.join(sorted(brought))}" if brought else "; none is installed"
            raise SettingsError(f"PRESSWORK_IMAGE_POLICIES names {name!r}, and no such policy is installed{known}.")


def _described(image: Image) -> str:
    spec = image.spec
    shown = ("prompt", "negative_prompt", "seed", "guidance_scale", "width", "height", "steps")
    return json.dumps({name: getattr(spec, name) for name in shown if hasattr(spec, name)})


def _open(name: str, **_options: Any) -> Callable[[NDArray[np.uint8], str], Any]:
    judge = next(iter(metadata.entry_points(group=GROUP, name=name))).load()()
    return lambda pixels, words: judge(pixels, json.loads(words))


def _verdict(_name: str, given: Any) -> str:
    """A word that says why the picture is refused; an empty one lets it through."""
    if given is None:
        return ""
    return given if isinstance(given, str) and _WORD.fullmatch(given) else "refused"


def _why(error: BaseException) -> str:
    """Never the error's own text: it may quote a prompt."""
    return f"it raised {type(error).__name__}"


def main(arguments: Sequence[str]) -> int:
    return scoring_process.serve(arguments, _open, _verdict, _why)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
