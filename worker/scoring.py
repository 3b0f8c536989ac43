"""Scores of rendered images, in the storing stage. A scorer that fails fails no image: it is counted, and the image's
score is null.

An image waits for scorers in the other process only as long as the device has something to do.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import SettingsError
from services.core.model.scores import PHASH
from services.core.settings import Settings
from worker import scorer
from worker.scoring_process import ProcessEnded, ScoringProcess

log = logging.getLogger(__name__)
MOST_DEATHS = 3  # of its process in a row, then a scorer is left out
_LOGGED_EVERY = 1_000  # failures of a scorer, after the first
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Scores:
    """What the scorers gave one image; a number is None where its scorer failed. None: none was chosen."""

    numbers: Mapping[str, float | None] | None = None
    phash: int | None = None


@dataclass(slots=True)
class Trouble:
    """What went wrong with one scorer: images that it failed, and those that did not wait for it. `off`: it is left
    out until the worker starts again."""

    failed: int = 0
    late: int = 0
    why: str = ""
    off: bool = False
    deaths: int = field(default=0, repr=False)  # in a row


class Scoring:
    """The chosen scorers. Any thread may score.

    Raises:
        SettingsError: a scorer that is chosen is not there or cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        scorer.check(settings.scorers)
        self._names = settings.scorers
        self._seconds = settings.score_seconds
        self._options = {"clip": {"directory": settings.clip_dir}}
        self._own = {name: scorer.open_scorer(name) for name in self._names if scorer.is_own(name)}
        self._others = [name for name in self._names if name not in self._own]
        self._troubles = {name: Trouble() for name in self._names}
        self._guard = threading.Lock()
        self._process: ScoringProcess | None = None
        self._is_closed = False
        self._turns = ThreadPoolExecutor(1, "score") if self._others else None
        if self._turns is not None:
            for name, why in self._turns.submit(self._start).result().items():
                self.close()
                raise SettingsError(f"The scorer {name} cannot be opened: {why.removesuffix('.')}.")

    def begin(self, pixels: NDArray[np.uint8], prompt: str) -> "Pending":
        """Scores the image: at once, and in the background where another process does it."""
        found: dict[str, Any] = {}
        for name, score in self._own.items():
            try:
                found[name] = scorer.value(name, score(pixels, prompt))
            except Exception as error:
                found[name] = None
                self._failed(name, scorer.reason(error))
        future = None
        if self._turns is not None:
            with suppress(RuntimeError):  # it is closed: the worker stops
                future = self._turns.submit(self._ask, pixels, prompt)
        return Pending(found | dict.fromkeys(self._others), future)

    def end(self, pending: "Pending", is_hurried: Callable[[], bool], until: float = math.inf) -> Scores:
        """The scores, when they are all there, each scorer had `score_seconds` since the image's turn came,
        `is_hurried()`, or it is `until`, by the monotonic clock."""
        if not self._names:
            return Scores()
        found = dict(pending.found)
        if pending.future is not None:
            late = self._wait(pending.future, is_hurried, until)
            found |= dict.fromkeys(self._others) if late else pending.future.result()
            for name in self._others if late else ():
                self._late(name)
        phash = found.pop(PHASH, None)
        return Scores({name: found[name] for name in self._names if name != PHASH}, phash)

    def troubles(self) -> dict[str, dict[str, Any]]:
        """What went wrong since the worker started, by scorer."""
        with self._guard:
            return {
                name: {"failed": one.failed, "late": one.late, "why": one.why, "off": one.off}
                for name, one in self._troubles.items()
                if one.failed or one.late
            }

    def close(self) -> None:
        """Ends the other process, also one that hangs."""
        if self._turns is not None:
            self._turns.shutdown(wait=False, cancel_futures=True)
        with self._guard:
            self._is_closed, process = True, self._process
        if process is not None:
            process.end()

    def _wait(self, future: "Future[dict[str, Any]]", is_hurried: Callable[[], bool], until: float) -> bool:
        """Waits for the scores. True: they are not there, and nobody will ask for them."""
        has_turn = False
        while True:
            try:
                future.result(_POLL_SECONDS)
                return False
            except NotYet:
                if not has_turn and future.running():
                    has_turn = True
                    until = min(until, time.monotonic() + self._seconds * len(self._others))
                if time.monotonic() > until or is_hurried():
                    future.cancel()
                    return True

    def _start(self) -> dict[str, str]:
        """Starts the process with the scorers that are not left out. Why those that cannot be opened cannot."""
        names = [name for name in self._others if not self._troubles[name].off]
        with self._guard:
            self._process = ScoringProcess(names, self._options) if names and not self._is_closed else None
        try:
            return {} if self._process is None else self._process.wait_ready()
        except ProcessEnded as ended:
            self._process = None
            return {ended.name: str(ended)}

    def _ask(self, pixels: NDArray[np.uint8], prompt: str) -> dict[str, Any]:
        """In the thread of the process. A process that ends under a scorer is started again for the next image."""
        found: dict[str, Any] = dict.fromkeys(self._others)

        def tell(name: str, value: float | None, why: str) -> None:
            found[name] = value
            if why:
                self._failed(name, why)
            self._troubles[name].deaths = 0

        try:
            if self._process is None:
                for name, why in self._start().items():
                    self._died(name, why)
            if self._process is not None:
                self._process.score(pixels, prompt, self._seconds, tell)
        except ProcessEnded as ended:
            self._process = None
            self._died(ended.name, str(ended))
        except Exception as error:  # the machine lets no process start, say
            self._process = None
            for name in self._others:
                self._failed(name, scorer.reason(error))
        return found

    def _died(self, name: str, why: str) -> None:
        trouble = self._troubles[name]
        trouble.deaths += 1
        self._failed(name, why)
        if trouble.deaths >= MOST_DEATHS:
            trouble.off = True
            log.error("scorer left out", extra={"scorer": name, "why": why})

    def _failed(self, name: str, why: str) -> None:
        with self._guard:
            trouble = self._troubles[name]
            trouble.failed += 1
            trouble.why = why
            is_logged = trouble.failed % _LOGGED_EVERY == 1
        if is_logged:
            log.warning("scorer failed", extra={"scorer": name, "why": why, "failed": trouble.failed})

    def _late(self, name: str) -> None:
        with self._guard:
            self._troubles[name].late += 1


@dataclass(frozen=True, slots=True)
class Pending:
    """An image that is being scored: what it has, and what another process finds."""

    found: Mapping[str, Any]
    future: "Future[dict[str, Any]] | None"
