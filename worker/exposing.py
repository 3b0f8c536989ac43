"""Shows a worker's metrics: the parent answers, for itself and for its children, whose counts outlive them.

A child counts in files that it maps into its memory (the multi-process mode of prometheus_client), and the next child
goes on in the same files. They lie in a folder of their own, which the next worker on this machine removes if this one
is killed.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import Counter, ProcessCollector, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import CollectorRegistry

from services.core import environment
from services.core.metrics import endpoint, registry
from services.core.metrics.bounded import LONGEST
from services.core.metrics.definitions import BY_NAME
from services.core.settings import Settings
from worker.shared_memory import SharedState

_PREFIX = "presswork-metrics-"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client looks for the folder


class Exposing:
    """The parent's half. Raises SettingsError if the port cannot be taken. Without a port it does nothing."""

    def __init__(self, settings: Settings, model: str, shared: SharedState) -> None:
        self._model, self._shared = model[:LONGEST], shared
        self._endpoint: endpoint.Endpoint | None = None
        if not settings.metrics_port:
            return
        environment.check_temporary_folder()
        found = CollectorRegistry()
        deaths = BY_NAME["presswork_worker_child_deaths_total"]
        self._deaths = Counter(deaths.name, deaths.text, deaths.labels, registry=found)
        for state in ("starting", "ready"):
            self._deaths.labels(self._model, state)
        found.register(registry.Read("presswork_worker_up", self._up))
        found.register(registry.Machine("worker", {"artefacts": settings.artefacts} if settings.artefacts else {}))
        ProcessCollector(registry=found, pid=lambda: shared.pid or "self")
        self._endpoint = endpoint.listen(settings, found)
        self._folder = _make_folder()
        MultiProcessCollector(found, path=str(self._folder))  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Answers from now on."""
        if self._endpoint is not None:
            self._endpoint.start()

    def child_died(self, *, ready: bool) -> None:
        if self._endpoint is not None:
            self._deaths.labels(self._model, "ready" if ready else "starting").inc()

    def in_child(self) -> None:
        """In a child, before it counts anything: it counts in the files, and leaves the port to the parent."""
        if self._endpoint is not None:
            self._endpoint.leave()
            os.environ[_FOLDER] = str(self._folder)
            values.ValueClass = values.MultiProcessValue(lambda: "child")  # type: ignore[no-untyped-call]

    def _up(self) -> Mapping[tuple[str, ...], float]:
        return {(self._model,): float(self._shared.is_ready and self._shared.pid != 0)}


def _make_folder() -> Path:
    """A new folder, locked for as long as this process or a child of it lives. Removes those that nobody has locked."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        _remove(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            _lock(folder)
        except OSError:  # another worker that starts has taken it for one that was left
            continue
        if folder.exists():
            atexit.register(_forget, folder, os.getpid())
            return folder


def _lock(folder: Path) -> int:
    """Raises OSError if another process has the lock."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove(folder: Path) -> None:
    try:
        if folder.lstat().st_uid != os.getuid():
            return
        lock = _lock(folder)
    except OSError:  # in use, or not a folder of ours
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _forget(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a fork inherits what is registered
        shutil.rmtree(folder, ignore_errors=True)
