"""Whether the database could be reached without a break: who was cut off must not take others for dead.

After an outage nobody has been able to extend a lease. Whoever comes back first waits a lease before it expires any.
"""

import time


class Connectivity:
    """One process's view of the database. A process that has just started knows of no break."""

    def __init__(self) -> None:
        self._lost_at = float("-inf")

    def lost(self) -> None:
        """A statement failed because the database was away."""
        self._lost_at = time.monotonic()

    def steady(self, seconds: float) -> bool:
        """No break in the last so many seconds."""
        return time.monotonic() - self._lost_at > seconds
