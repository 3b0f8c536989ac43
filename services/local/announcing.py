"""Says what the start does, until the web server is ready for jobs, however long that takes."""

import shlex
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from services.core.db.database import Database
from services.core.fleet import workers
from services.core.model.errors import DatabaseUnavailable

POLL_SECONDS = 0.2
REMIND_SECONDS = 30.0  # a longer activity is said again, with its time
SILENT_SECONDS = 120.0  # without a worker that starts


def announce(
    url: str, env_file: Path, database: Database, stopping: threading.Event, say: Callable[[str], None]
) -> None:
    """Runs until the server is ready or everything stops. Closes `database`."""
    with closing(database):
        _announce(url, env_file, database, stopping, say)


def _announce(
    url: str, env_file: Path, database: Database, stopping: threading.Event, say: Callable[[str], None]
) -> None:
    began = moved = time.monotonic()
    told = Told(say)
    while not stopping.wait(POLL_SECONDS):
        if _ready(url):
            source = f". {shlex.quote(str(env_file))}"
            took = time.monotonic() - began
            opens = "`presswork open` opens the dashboard there, signed in"
            say(f"ready at {url} after {took:.1f} s; {opens}; `{source}` sets PRESSWORK_API_KEY")
            return
        doing = _doing(database)
        if doing:
            moved = time.monotonic()
            told.tell(doing)
        elif time.monotonic() - moved > SILENT_SECONDS:
            moved = time.monotonic()
            say(f"not ready after {moved - began:.0f} s; see {url}/readyz and the logs in {env_file.parent / 'logs'}")


class Told:
    """Says what is new, and what still goes on after a while."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._last = say, ""
        self._since = self._said = 0.0

    def tell(self, doing: str) -> None:
        now = time.monotonic()
        if doing != self._last:
            self._last, self._since, self._said = doing, now, now
            self._say(f"the worker is starting: {doing}")
        elif now - self._said > REMIND_SECONDS:
            self._said = now
            self._say(f"the worker is starting: still {doing}, for {now - self._since:.0f} s")


def _doing(database: Database) -> str:
    """What the first worker does that is starting; empty if none is."""
    try:
        with database.begin_system() as connection:
            return next(iter(workers.starting(connection)), "")
    except DatabaseUnavailable:
        return ""


def _ready(url: str) -> bool:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
        with direct.open(f"{url}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
