"""Limits the values of labels that come from outside, so that no one can make series without end."""

import threading

from services.core.metrics.definitions import OTHER

LONGEST = 100  # characters of a label


class Bounded:
    """The first `most` values it is asked for, each cut to LONGEST characters; any further value is `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()
        self._guard = threading.Lock()

    def __call__(self, value: str) -> str:
        value = value[:LONGEST]
        with self._guard:
            if value in self._known or len(self._known) < self._most:
                self._known.add(value)
                return value
        return OTHER
