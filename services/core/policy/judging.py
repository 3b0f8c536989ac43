"""Policies of prompts that installed distributions bring, each in a process of its own (`policy_process.py`).

An entry point of the group `presswork.prompt_policies` is a function without arguments that gives a policy: a function
of a list of prompts that gives for each None, or a word that says why it is refused.
"""

import atexit
import logging
import threading
from functools import lru_cache
from importlib import metadata

from services.core.model.errors import PolicyUnavailable, SettingsError
from services.core.policy.policy_process import GROUP, PolicyFailed, PolicyProcess
from services.core.settings import Settings

log = logging.getLogger(__name__)
START_SECONDS = 300.0  # for a policy that loads a model


class Judge:
    """The chosen policies. Any thread may ask."""

    def __init__(self, names: tuple[str, ...], seconds: float, *, refuses: bool, start_seconds: float) -> None:
        """`refuses`: what cannot be judged is refused for now; otherwise it is let through, and logged."""
        self._seconds, self._refuses = seconds, refuses
        self._one_at_a_time = threading.Lock()
        self.policies = {name: PolicyProcess(name, seconds, start_seconds) for name in names}

    def ask(self, prompts: list[str]) -> list[str | None]:
        """For each prompt why it is refused, or None. What one policy refuses is refused although others fail. Raises
        PolicyUnavailable."""
        if not prompts:
            return []
        found: list[str | None] = [None] * len(prompts)
        failed = self._ask_all(prompts, found)
        if failed and self._refuses and None in found:
            raise PolicyUnavailable
        return [None if verdict is None else f"was refused by a content policy: {verdict}" for verdict in found]

    def start(self) -> None:
        """Opens the policies. Raises PolicyFailed."""
        with self._one_at_a_time:
            for policy in self.policies.values():
                if policy.pid is None:
                    policy.start()

    def end(self) -> None:
        """Ends the processes, also one that hangs."""
        for policy in self.policies.values():
            policy.end()

    def _ask_all(self, prompts: list[str], found: list[str | None]) -> bool:
        """Leaves in `found` the verdicts of those that answer; returns whether one failed."""
        if not self._one_at_a_time.acquire(timeout=2 * self._seconds * len(self.policies)):
            self._log("others were asked about for too long")
            return True
        try:
            return sum(not self._ask_one(policy, prompts, found) for policy in self.policies.values()) > 0
        finally:
            self._one_at_a_time.release()

    def _ask_one(self, policy: PolicyProcess, prompts: list[str], found: list[str | None]) -> bool:
        """Asks about the prompts that none has refused. Returns whether it answered."""
        left = [place for place, verdict in enumerate(found) if verdict is None]
        if not left:
            return True
        try:
            verdicts = policy.ask([prompts[place] for place in left])
        except PolicyFailed as failed:
            self._log(str(failed))
            return False
        for place, verdict in zip(left, verdicts, strict=True):
            found[place] = verdict
        return True

    def _log(self, why: str) -> None:
        log.warning("prompt policy failed", extra={"why": why, "refuses": self._refuses})


def opened(settings: Settings) -> Judge | None:
    """This process's judge; None: no policy is chosen."""
    if not settings.prompt_policies:
        return None
    return _opened(settings.prompt_policies, settings.policy_seconds, settings.policy_fault == "refuse")


def check(settings: Settings) -> None:
    """Raises SettingsError unless each chosen policy is installed and opens."""
    if not settings.prompt_policies:
        return
    brought = {entry.name for entry in metadata.entry_points(group=GROUP)}
    for name in settings.prompt_policies:
        if name not in brought:
            known = f"; there are {', '.join(sorted(brought))}" if brought else "; none is installed"
            raise SettingsError(f"PRESSWORK_PROMPT_POLICIES names {name!r}, and no such policy is installed{known}.")
    if judge := opened(settings):
        try:
            judge.start()
        except PolicyFailed as failed:
            raise SettingsError(f"A policy of PRESSWORK_PROMPT_POLICIES cannot be opened: {failed}.") from None


@lru_cache(maxsize=8)
def _opened(names: tuple[str, ...], seconds: float, refuses: bool) -> Judge:
    judge = Judge(names, seconds, refuses=refuses, start_seconds=START_SECONDS)
    atexit.register(judge.end)
    return judge
