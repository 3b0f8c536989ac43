"""Waiting for a condition, and never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60.0, every: float = 0.05) -> T:
    """The first truthy value of `condition()`. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s: {value!r}"
        time.sleep(every)
    return value
