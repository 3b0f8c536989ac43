"""Rate limits: how many requests a second a tenant may send, with one second's worth at once at most.

One bucket of tokens per tenant stands in Redis, for all web servers together, and one script reads, fills and takes
from it by the clock of Redis. While Redis is away, each server keeps buckets of its own, by the same rule: a limit is
then one per server, and never none. A tenant without a limit costs nothing.
"""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import redis

from services.core import broker

log = logging.getLogger(__name__)
AWAY_SECONDS = 5.0  # for so long it is not asked again
ANSWER_SECONDS = 0.25
_MOST = 10_000  # buckets of a server's own
# KEYS[1]: the bucket. ARGV: tokens a second, tokens at most. Returns whether one was taken, and how many are left, in
# thousandths. A clock that was set back fills nothing.
_TAKE = """
local now = redis.call('TIME')
local at = now[1] * 1000 + math.floor(now[2] / 1000)
local rate, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = tonumber(held[1]) or most
local since = math.max(0, at - (tonumber(held[2]) or at))
tokens = math.min(most, tokens + since * rate / 1000)
local taken = 0
if tokens >= 1 then
  taken, tokens = 1, tokens - 1
end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', at)
redis.call('PEXPIRE', KEYS[1], math.ceil(most / rate * 1000) + 1000)
return {taken, math.floor(tokens * 1000)}
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """`allowed`: there was a token. `limit` requests come at once at most; `left` tokens remain; the next whole one
    comes in `wait` seconds."""

    allowed: bool
    limit: int
    left: float
    wait: float


class RateLimits:
    """Threads may share it. Never raises because of Redis."""

    def __init__(self, redis_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = broker.redis_client(redis_url, answer_seconds=ANSWER_SECONDS)
        self._clock = clock
        self._guard = threading.Lock()
        self._own: OrderedDict[int, tuple[float, float]] = OrderedDict()  # tokens, and when they were so many
        self._asked_again_at = 0.0

    def take(self, tenant_id: int, per_second: float) -> Taken:
        """Takes a token for a request of the tenant, which may send so many a second."""
        most = max(1, math.ceil(per_second))
        found = self._from_redis(tenant_id, per_second, most) if self._clock() >= self._asked_again_at else None
        allowed, left = found or self._from_own(tenant_id, per_second, most)
        missing = 1 - left % 1 if left < most else 0.0
        return Taken(allowed, most, left, missing / per_second)

    def _from_redis(self, tenant_id: int, per_second: float, most: int) -> tuple[bool, float] | None:
        """None: it is away, refuses or answers nonsense."""
        try:
            taken, left = self._redis.eval(_TAKE, 1, f"presswork:rate:{tenant_id}", str(per_second), str(most))
            return bool(int(taken)), int(left) / 1000
        except (redis.RedisError, OSError, TypeError, ValueError) as error:
            log.warning("rate limits are each server's own", extra={"error": str(error)[:200]})
            self._asked_again_at = self._clock() + AWAY_SECONDS
            return None

    def _from_own(self, tenant_id: int, per_second: float, most: int) -> tuple[bool, float]:
        with self._guard:
            now = self._clock()
            tokens, at = self._own.pop(tenant_id, (float(most), now))
            tokens = min(float(most), tokens + max(0.0, now - at) * per_second)
            allowed = tokens >= 1
            tokens -= allowed
            self._own[tenant_id] = tokens, now
            if len(self._own) > _MOST:
                self._own.popitem(last=False)
            return allowed, tokens
