"""A clock for one module alone. Other threads of the process, such as heartbeats, keep the real one."""

import time
from types import ModuleType

import pytest


class Clock:
    """Stands in for `time` in a module: it moves when the test, or a sleep of that module, moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
        self.now = time.monotonic()
        self.slept: list[float] = []
        self.sleep_takes: float | None = None  # seconds; None: as long as was asked for
        monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds if self.sleep_takes is None else self.sleep_takes
