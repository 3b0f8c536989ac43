"""How many CPUs this process may use. A machine's count is too high in a container, where it makes threads wait."""

import os
from collections.abc import Iterator
from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """The CPUs that its affinity and the quotas of its control groups leave it, rounded down, and at least 1."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([known, *_quotas(root)])))


def set_threads(threads: int, workers: int = 1) -> None:
    """Tells the libraries that compute, which read it when they are imported: `threads`, or, for 0, OMP_NUM_THREADS if
    it is set, or else this process's share of the CPUs that it may use with so many `workers`."""
    if threads or not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(threads or max(1, available() // max(1, workers)))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in CPUs, of the control group that this process is in and of those around it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            places = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            places = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for place in places:
            for folder in (inner, *inner.parents):  # in a container the path may be the host's: then the last is right
                yield from _quota(place / folder)


def _quota(group: Path) -> Iterator[float]:
    words = _text(group / "cpu.max").split() or [
        _text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    if len(words) == 2 and all(word.isdigit() and int(word) for word in words):  # "max" or -1: no quota
        yield int(words[0]) / int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
