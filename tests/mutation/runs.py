"""Runs mutants in slots, several at a time, and writes down what came of each as soon as it is known.

The working tree is only read. A run that is cut off goes on where it was: what was killed stays killed, and what
survived is tried again once its tests have changed.
"""

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests import memory
from tests.mutation.mutants import Mutant
from tests.mutation.targets import TARGETS

_BASELINE_SECONDS = 1200.0


@dataclass(frozen=True, slots=True)
class Result:
    """`outcome` is killed, survived, or timed out (which counts as killed). `by` is the test that noticed."""

    key: str
    outcome: str
    by: str
    seconds: float
    tests: str  # a digest of the files of tests that it ran


class Notebook:
    """The results of all runs so far, in a file of one line each."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._tests = {target: _digest(root, target) for target in TARGETS}  # as they are now: runs have copies of them
        self._guard = threading.Lock()
        self.results: dict[str, Result] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                result = Result(**json.loads(line))
                self.results[result.key] = result

    def add(self, result: Result) -> None:
        with self._guard:
            self.results[result.key] = result
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")

    def knows(self, mutant: Mutant) -> bool:
        known = self.results.get(mutant.key)
        return known is not None and (known.outcome != "survived" or known.tests == self.tests_of(mutant.target))

    def tests_of(self, target: str) -> str:
        return self._tests[target]


class Slot:
    """A process that runs mutants one after the other, in a copy of its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        copy = folder / "tree"
        for name in _files(root):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
        self._log = (folder / "slot.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutation.slot", str(folder)], cwd=copy, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)},
        )  # fmt: skip
        self._seconds: dict[str, float] = {}

    def run(self, mutant: Mutant, first: list[str]) -> dict[str, Any]:
        """Raises RuntimeError if the tests fail without the mutant, too."""
        files = TARGETS[mutant.target].tests
        for file in files:
            if file not in self._seconds:
                self._seconds[file] = self._baseline(mutant.path, file)
        seconds = 3 * sum(self._seconds[file] for file in files) + 30
        order = {"path": mutant.path, "source": mutant.source, "files": files, "first": first, "seconds": seconds}
        return self._ask(order)

    def stop(self) -> None:
        """Ends it, and its servers with it, also in the middle of a run."""
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _baseline(self, path: str, file: str) -> float:
        answer = self._ask({"path": path, "files": [file], "first": [], "seconds": _BASELINE_SECONDS})
        if answer["code"] != 0:
            raise RuntimeError(f"{file} fails without any mutant: {answer['failed']}\n{answer['tail']}")
        return float(answer["seconds"])

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(order) + "\n")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a slot has ended: {Path(self._log.name).read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def run(mutants: Iterable[Mutant], notebook: Notebook, root: Path, slots: int) -> None:
    """Tries every mutant, and tells of each in a line. Raises RuntimeError when the tests fail without a mutant."""
    waiting: queue.Queue[Mutant] = queue.Queue()
    for mutant in mutants:
        waiting.put(mutant)
    total = waiting.qsize()
    killers = _Killers()
    faults: list[BaseException] = []
    started: list[Slot] = []

    def work(folder: Path) -> None:
        try:
            slot = Slot(root, folder)
            started.append(slot)
            while not faults:
                mutant = waiting.get_nowait()
                result = _result(mutant, slot.run(mutant, killers.of(mutant)), notebook)
                killers.note(mutant, result.by)
                notebook.add(result)
                place = f"{mutant.path}:{mutant.line} {mutant.where}"
                done = total - waiting.qsize()
                print(f"{done}/{total} {result.outcome} {result.seconds:.0f} s  {place}: {mutant.what}", flush=True)
        except queue.Empty:
            pass
        except BaseException as error:
            faults.append(error)

    with _folders(min(slots, total)) as folders:
        threads = [threading.Thread(target=work, args=(folder,), daemon=True) for folder in folders]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for slot in started:
                slot.stop()
    if faults:
        raise RuntimeError(str(faults[0])) from faults[0]


class _Killers:
    """The tests that noticed the most, of the same statement and of the same module: they run first."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], Counter[str]] = {}

    def of(self, mutant: Mutant) -> list[str]:
        names = (
            name for key in self._keys(mutant) for name, _ in self._counts.get(key, Counter()).most_common(6)
        )  # fmt: skip
        return list(dict.fromkeys(names))

    def note(self, mutant: Mutant, name: str) -> None:
        if name:
            for key in self._keys(mutant):
                self._counts.setdefault(key, Counter())[name] += 1

    def _keys(self, mutant: Mutant) -> tuple[tuple[str, ...], ...]:
        return (mutant.target, mutant.where), (mutant.target,)


def _result(mutant: Mutant, answer: dict[str, Any], notebook: Notebook) -> Result:
    code = answer["code"]
    if code in (4, 5):
        raise RuntimeError(f"pytest does not run: {answer['tail']}")
    outcome = "timed out" if code is None else "survived" if code == 0 else "killed"
    tests = notebook.tests_of(mutant.target)
    return Result(mutant.key, outcome, answer.get("failed", ""), answer["seconds"], tests)


def _digest(root: Path, target: str) -> str:
    digest = hashlib.sha256()
    for file in TARGETS[target].tests:
        digest.update((root / file).read_bytes())
    return digest.hexdigest()[:12]


def _files(root: Path) -> Iterator[str]:
    """What git knows of, and what it would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    yield from (name for name in names if name and (root / name).is_file())


@contextmanager
def _folders(count: int) -> Iterator[list[Path]]:
    """A folder for each slot, gone afterwards; in memory if there is room, since every test makes a database."""
    with memory.folder("presswork-mutation-") as folder:
        folders = [folder / str(number) for number in range(count)]
        for path in folders:
            path.mkdir()
        yield folders
