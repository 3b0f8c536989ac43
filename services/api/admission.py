"""Which connections are taken: there is a limit, and strangers cannot use all of it.

An address is known once a request with a valid API key has come from it, or if it is a trusted proxy's. One stranger
gets a quarter of the connections and all of them together three quarters, so that a known client still finds room while
others open one connection after another.
"""

import resource
from collections import OrderedDict

from services.api import addresses
from services.core.settings import Settings

RESERVED_FILES = 128  # for the database, the store, Redis, spools and logs
_MAX_KNOWN = 10_000


class Admission:
    """Counts the connections of each address. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = settings.max_connections if files == resource.RLIM_INFINITY else files - RESERVED_FILES
        self.limit = max(4, min(settings.max_connections, spare))
        self._proxies = settings.trusted_proxies
        self._open: dict[str, int] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self._total = self._strangers = 0

    def admit(self, address: str) -> bool:
        """Counts a new connection. False: there is no room for it."""
        known, mine = self.is_known(address), self._open.get(address, 0)
        if self._total >= self.limit:
            return False
        if not known and (mine >= self.limit // 4 or self._strangers >= self.limit * 3 // 4):
            return False
        self._open[address] = mine + 1
        self._total += 1
        self._strangers += not known
        return True

    def release(self, address: str) -> None:
        """A connection that was admitted has ended."""
        self._total -= 1
        self._strangers -= not self.is_known(address)
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def remember(self, address: str) -> None:
        """A valid API key has come from there. The addresses that were quiet for longest are forgotten first."""
        if not self.is_known(address):
            self._strangers -= self._open.get(address, 0)
        self._known[address] = None
        self._known.move_to_end(address)
        if len(self._known) > _MAX_KNOWN:
            forgotten, _ = self._known.popitem(last=False)
            if not self.is_known(forgotten):
                self._strangers += self._open.get(forgotten, 0)

    def is_known(self, address: str) -> bool:
        return address in self._known or addresses.is_trusted(address, self._proxies)


def raise_file_limit() -> None:
    """Lets this process open as many files and connections as the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
