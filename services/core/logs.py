"""Structured logs: one JSON object per line, with an event and its ids as fields. Prompts and secrets are never logged.

Errors of the database and of checks quote what they were about, so their texts are left out of tracebacks; what stays
is the kind, the SQLSTATE, and the table and the constraint. Of addresses, passwords and queries are left out.

`at` is in UTC. A line that a request caused carries its `request_id`, which the answer has as X-Request-Id.
"""

import json
import logging
import re
import sys
import threading
import time
import traceback
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
_SECRETS = (
    (re.compile(r'(://)[^/\s@"\\]*@'), r"\1***@"),  # a name and a password before a host
    (re.compile(r'(https?://[^\s?"\\]*\?)[^\s"\\]+'), r"\1***"),  # signatures and tokens
    (re.compile(r"pw_[A-Za-z0-9]{8}_[A-Za-z0-9_-]+"), "pw_***"),  # API keys
    (re.compile(r"whsec_[A-Za-z0-9+/=]+"), "whsec_***"),  # webhooks' secrets
)
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
            entry["exception"] = _exception(record.exc_info[1])
        return _scrubbed(json.dumps(entry, default=str))


def _scrubbed(line: str) -> str:
    for pattern, instead in _SECRETS:
        line = pattern.sub(instead, line)
    return line


def _exception(error: BaseException | None) -> str:
    """The tracebacks of an error and of those that led to it, the first one first, without texts that quote data."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    parts = [f"{''.join(traceback.format_tb(one.__traceback__))}{_kind(one)}: {_said(one)}" for one in reversed(chain)]
    for one in chain:
        if isinstance(one, BaseExceptionGroup):
            parts += map(_exception, one.exceptions)
    return "\n\n".join(parts)


def _kind(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _said(error: BaseException) -> str:
    """What an error says, if that quotes no data."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if modules & {"psycopg", "sqlalchemy"}:
        diagnosis = getattr(getattr(error, "orig", None) or error, "diag", None)
        names = ("sqlstate", "table_name", "column_name", "constraint_name")
        found = [f"{name} {value}" for name in names if (value := getattr(diagnosis, name, None))]
        return ", ".join(found) or "no SQLSTATE"
    if modules & {"pydantic", "pydantic_core"}:
        return f"{getattr(error, 'error_count', lambda: 'some')()} errors of {getattr(error, 'title', '')}"
    problems = getattr(error, "problems", None)
    if problems is not None:
        return ", ".join(sorted({getattr(problem, "code", "problem") for problem in problems}))
    return str(error)


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
