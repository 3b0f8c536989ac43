"""Structured logs: one JSON object per line, with an event and its ids as fields. Prompts are never logged.

`at` is in UTC. A line that a request caused carries its `request_id`, which the answer has as X-Request-Id.
"""

import json
import logging
import sys
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# Loggers whose warnings tell of a state that lasts, and that any client can bring about.
_REPEATED = {
    "asyncio", "uvicorn.error", "services.api.connections", "services.api.errors", "services.api.readiness",
    "services.api.body.streaming",
}  # fmt: skip
_MAX_STATES = 1_000
OURS = ("services", "worker", "scheduler", "migrations", "__main__")
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)  # of what this task or thread works on


class JsonLines(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "at": _utc(record.created),
            "level": record.levelname.lower(),
            "role": self._role,
            "event": record.getMessage(),
        }
        if (request := request_id.get()) is not None:
            entry["request_id"] = request
        entry |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD and value is not None}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class OncePerState(logging.Filter):
    """Lets one line a minute through of a warning that is repeated: while a server is away, or every descriptor in use,
    each request would write it. `repeated` then counts the lines that were left out."""

    SECONDS = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[tuple[str, str], tuple[float, int]] = {}
        self._guard = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.name not in _REPEATED:
            return True
        state = record.name, record.getMessage().partition("\n")[0]
        with self._guard:
            if len(self._written) > _MAX_STATES:
                self._written.clear()
            at, left_out = self._written.get(state, (float("-inf"), 0))
            if time.monotonic() - at < self.SECONDS:
                self._written[state] = at, left_out + 1
                return False
            self._written[state] = time.monotonic(), 0
        record.repeated = left_out or None
        return True


def configure(role: str, level: int = logging.INFO) -> None:
    """Sends all logs of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(role))
    handler.addFilter(OncePerState())
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    for name in OURS:  # what libraries do is of interest only when something is wrong with it
        logging.getLogger(name).setLevel(level)
