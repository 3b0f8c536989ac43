"""Whether this process could reach the database without a break.

During an outage no process can extend its leases. So a process that was cut off waits for one lease before it expires
the leases of others.
"""

import time


class Connectivity:
    """One process's view of the database. A process that has just started has seen no break."""

    def __init__(self) -> None:
        self._lost_at = float("-inf")

    def lost(self) -> None:
        """A statement failed because the database could not be reached."""
        self._lost_at = time.monotonic()

    def steady(self, seconds: float) -> bool:
        """Whether there was no break in the last `seconds`."""
        return time.monotonic() - self._lost_at > seconds
