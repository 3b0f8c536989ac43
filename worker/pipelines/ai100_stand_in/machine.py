"""The stand-in's devices: what is free on them, their clock, and the faults that the environment asks for.

AI100_STAND_IN_CARD      standard (the default), pro or ultra
AI100_STAND_IN_DEVICES   how many devices there are; without it, those of one card
AI100_STAND_IN_MEMORY    each device's memory in MiB, if it is not the card's
AI100_STAND_IN_TIMES     replaces entries of the table of times, as PRESSWORK_AI100_TIMES does
AI100_STAND_IN_SCALE     what share of a time the stand-in sleeps; 0, the default: it does not
AI100_STAND_IN_VERSION   the SDK's version
AI100_STAND_IN_FAULTS    words with commas: permission, busy (cores), memory, shape, activation, held (by another
                         process), forbidden (to activate), lost@N, timeout@N (run N)

The clock is virtual: a run begins when the host has asked for it and its program is free, and ends after the table's
time; the host is as far as the last thing it waited for. The host is the thread that starts runs: a switch blocks it,
but one that another thread asks for goes on beside it, on the device's own time.
"""

import os
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from worker.pipelines.ai100.cards import CARDS, Card, Times, read_times

NAME = "stand-in"
VERSION = "1.21.2"
BUSY_CORES, SHORT_MIB = 1, 1


def card() -> Card:
    found = CARDS[os.environ.get("AI100_STAND_IN_CARD") or "standard"]
    memory = os.environ.get("AI100_STAND_IN_MEMORY")
    return replace(found, memory_mib=int(memory)) if memory else found


def times() -> Times:
    return read_times(os.environ.get("AI100_STAND_IN_TIMES", ""))


def _scale() -> float:
    return float(os.environ.get("AI100_STAND_IN_SCALE") or 0)


def version() -> tuple[int, int, int]:
    major, minor, patch = (os.environ.get("AI100_STAND_IN_VERSION") or VERSION).split(".")
    return int(major), int(minor), int(patch)


def fault(name: str) -> bool:
    return any(word.strip() == name for word in os.environ.get("AI100_STAND_IN_FAULTS", "").split(","))


def fault_in(name: str) -> int:
    """The run in which a fault comes; 0: in none."""
    for word in os.environ.get("AI100_STAND_IN_FAULTS", "").split(","):
        kind, _, run = word.strip().partition("@")
        if kind == name and run.isdigit():
            return int(run)
    return 0


@dataclass(slots=True)
class Clock:
    """`host`: the virtual time, in milliseconds, that the host has come to. `switches` and `runs` count."""

    host: float = 0.0
    switches: int = 0
    runs: dict[str, int] = field(default_factory=dict)
    thread: int = 0  # which of them is the host
    _guard: Any = field(default_factory=threading.Lock)
    _origin: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Where the host is; if the stand-in sleeps, no earlier than the time that has passed."""
        if scale := _scale():
            self.host = max(self.host, (time.monotonic() - self._origin) * 1000 / scale)
        return self.host

    def wait_until(self, moment: float) -> None:
        self.host = max(self.host, moment)
        self._sleep_until(moment)

    def switch(self, device: "Device") -> float:
        """When a switch on the device that this thread asks for has ended."""
        with self._guard:
            self.switches += 1
            ends = device.switched_at = max(self.now(), device.switched_at) + times().switch
        if self.thread in (0, threading.get_ident()):
            self.wait_until(ends)
        else:
            self._sleep_until(ends)
        return ends

    def _sleep_until(self, moment: float) -> None:
        if scale := _scale():
            time.sleep(max(0.0, self._origin + moment / 1000 * scale - time.monotonic()))

    def count(self, network: str) -> int:
        """Counts a run, which makes its thread the host; the number of all of them."""
        self.thread = threading.get_ident()
        self.runs[network] = self.runs.get(network, 0) + 1
        return sum(self.runs.values())


@dataclass(slots=True)
class Device:
    number: int
    cores_used: int = 0
    mib_used: int = 0
    lost: bool = False
    switched_at: float = 0.0
    free_at: dict[int, float] = field(default_factory=dict)  # by program

    @property
    def cores_free(self) -> int:
        return min(card().cores - self.cores_used, BUSY_CORES if fault("busy") else card().cores)

    @property
    def mib_free(self) -> int:
        return min(card().memory_mib - self.mib_used, SHORT_MIB if fault("memory") else card().memory_mib)


CLOCK = Clock()
DEVICES: dict[int, Device] = {}


def numbers() -> list[int]:
    return list(range(int(os.environ.get("AI100_STAND_IN_DEVICES") or card().devices)))


def device(number: int) -> Device:
    """Raises KeyError."""
    if number not in numbers():
        raise KeyError(number)
    return DEVICES.setdefault(number, Device(number))


def reset() -> None:
    """As after a reset of the machine: nothing runs, and the clock begins anew."""
    global CLOCK  # noqa: PLW0603  it stands for the one machine
    CLOCK = Clock()
    DEVICES.clear()
