"""Wake-ups: "there is work for this model". A wake-up is only a hint.

Nothing here raises if Redis cannot be reached, refuses or answers nonsense: workers also look for work on a timer.
"""

import logging
import threading

import redis

from services.core import broker, traces
from services.core.crash_points import crash_point
from services.core.model.addresses import RedisAddress

log = logging.getLogger(__name__)
_COALESCE_MILLISECONDS = 2000


class Notifier:
    """Wakes the workers of models: at most once in two seconds for each model."""

    def __init__(self, redis_url: str) -> None:
        self._redis = broker.redis_client(redis_url)
        self._app = broker.celery_app(redis_url)
        self._wanted: dict[str, tuple[bool, str | None]] = {}  # whether again, and the span that it is a part of
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def notify(self, model: str, *, again: bool = False) -> None:
        """Sends a wake-up soon, from a thread of its own; never blocks. `again`: even if one was sent a moment ago."""
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
                self._thread.start()
            before, _ = self._wanted.get(model, (False, None))
            self._wanted[model] = again or before, traces.traceparent() if traces.is_on() else None
            self._wake.notify()

    def notify_now(self, model: str, *, again: bool = False) -> bool:
        """Sends a wake-up before it returns; False if Redis did not take it."""
        try:
            fresh = self._redis.set(f"presswork:wake-up:{model}", 1, px=_COALESCE_MILLISECONDS, nx=not again)
            if fresh or again:
                crash_point("wake-up.marked")
                broker.send(self._app, model)
        except Exception as error:  # a broken connection raises many types; the workers' timers make up for it
            log.warning("wake-up lost", extra={"model": model, "error": str(error)[:200]})
            return False
        return True

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._wanted:
                    self._wake.wait()
                model, (again, parent) = self._wanted.popitem()
            if parent is None:
                self.notify_now(model, again=again)
                continue
            with traces.span("wake-up", kind="producer", parent=parent, model=model):
                self.notify_now(model, again=again)


def redis_trouble(redis_url: str) -> str:
    """Why Redis would not take a wake-up now, in a sentence; empty if it would. Takes a few seconds at most."""
    where = f"Redis at {RedisAddress.parse(redis_url)}"
    client = broker.redis_client(redis_url)
    try:
        if client.set("presswork:probe", 1, px=1000) is True:
            return ""
    except redis.RedisError as error:
        return f"{where} cannot be used: {str(error).rstrip('.')[:200] or type(error).__name__}."
    except Exception:
        log.info("redis answers nonsense", exc_info=True)
    finally:
        client.close()
    return f"{where} does not answer as Redis does."


def redis_surplus(redis_url: str) -> str:
    """A sentence about what this user of Redis may do that no program does; empty if nothing was found."""
    user = RedisAddress.parse(redis_url).username or "default"
    client = broker.redis_client(redis_url)
    asked: dict[str, tuple[str, ...]] = {
        "CONFIG": ("CONFIG", "GET", "maxmemory"),
        "keys of other programs": ("EXISTS", "somebody-elses"),
        "FLUSHALL": ("ACL", "DRYRUN", user, "FLUSHALL"),  # which asks, and does nothing
    }
    try:
        found = [what for what, words in asked.items() if _is_allowed(client, *words)]
    finally:
        client.close()
    if not found:
        return ""
    return f"The user {user} may use {', '.join(found)}; services/README.md lists the commands and keys that it needs."


def _is_allowed(client: "redis.Redis", *words: str) -> bool:
    try:
        answer = client.execute_command(*words)  # type: ignore[no-untyped-call]
    except Exception:  # refused, or unknown to this server
        return False
    return words[0] != "ACL" or answer in (b"OK", "OK", True)


def redis_answers(redis_url: str) -> bool:
    """Whether Redis takes a wake-up: one that only answers PING, or can only be read, does not."""
    return not redis_trouble(redis_url)
