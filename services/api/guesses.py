"""Guesses: how many wrong keys one address may send, so that whoever guesses keeps the database from nobody.

An address may send a hundred at once, and one more each second. When they are used up, a key that was right a moment
ago is still looked up, so colleagues behind one address, or behind a proxy that is not trusted, go on; any other key is
answered 429 without a look. Of IPv6, all addresses of a network of 64 bits count as one: whoever has one has them all.
The counts are each server's own.
"""

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from services.api.errors import ApiError

AT_ONCE = 100
PER_SECOND = 1.0
_ADDRESSES = 10_000
_RIGHT = 10_000  # keys that were right; of each a digest is kept


class Guesses:
    """Threads may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # guesses, and when they were so many
        self._right: OrderedDict[bytes, None] = OrderedDict()

    def admit(self, address: str, key: str) -> None:
        """Raises ApiError: this address has sent too many wrong keys to be believed another one."""
        with self._guard:
            left = self._now(address)
            if left >= 1 or _digest(key) in self._right:
                return
        wait = max(1, math.ceil((1 - left) / PER_SECOND))
        message = f"Too many wrong keys came from your address; check the key, and try again in {wait} s."
        raise ApiError(429, "too_many_wrong_keys", message, headers={"Retry-After": str(wait)})

    def wrong(self, address: str, key: str) -> None:
        """Counts a wrong key, which may have been right before it was revoked."""
        with self._guard:
            self._right.pop(_digest(key), None)
            left = self._now(address)
            network = _network(address)
            self._left.pop(network, None)
            self._left[network] = max(0.0, left - 1), self._clock()
            if len(self._left) > _ADDRESSES:
                self._left.popitem(last=False)

    def right(self, key: str) -> None:
        """Remembers a right key."""
        with self._guard:
            digest = _digest(key)
            self._right.pop(digest, None)
            self._right[digest] = None
            if len(self._right) > _RIGHT:
                self._right.popitem(last=False)

    def _now(self, address: str) -> float:
        left, at = self._left.get(_network(address), (float(AT_ONCE), self._clock()))
        return min(float(AT_ONCE), left + max(0.0, self._clock() - at) * PER_SECOND)


def _network(address: str) -> str:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4 or found.ipv4_mapped:
        return str(found if found.version == 4 else found.ipv4_mapped)
    return str(ip_network((int(found), 64), strict=False))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
