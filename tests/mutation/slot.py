"""One place where mutants run: a private copy of the tree and a stack of servers, shared by all its runs.

`python -m tests.mutation.slot FOLDER` in the root of the copy. Each line on standard input is a run, each on standard
output what came of it. What the tests import from elsewhere is imported once, here; each run is a fork, which imports
what is ours afresh, so that only its tests cost time.
"""

import compileall
import contextlib
import gc
import importlib
import json
import os
import py_compile
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import redis

from services.core.db import database
from services.local.stack import Stack

_OURS = ("services", "worker", "scheduler", "migrations", "tests", "conftest", "__editable__")
_TEST_SECONDS = 40  # of one test; the slowest takes ten


class Slot:
    """Runs tests in the copy that is the current folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._stack = self._start()

    def _start(self) -> Stack:
        self._started += 1
        quiet = {name: value for name, value in os.environ.items() if not name.startswith(("PRESSWORK_", "AWS_"))}
        stack = Stack(self._folder / f"stack-{self._started}", quiet)
        stack.start()
        database.migrate(stack.migrator_url)
        known = {
            "values": stack.values, "migrator": stack.migrator_url, "superuser": stack.superuser_url,
            "programs": stack.programs, "admin": stack.admin,
        }  # fmt: skip
        self._known = self._folder / "stack.json"
        self._known.write_text(json.dumps(known))
        return stack

    def stop(self) -> None:
        self._stack.stop()

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """`files` in that order, the tests called `first` before all others, for at most `seconds`. With `source`, as
        the content of `path`; without, to see that all pass, and how long each file takes."""
        trial = "source" in order
        path = Path(order["path"])
        original = path.read_bytes()
        if trial:
            path.write_text(order["source"], encoding="utf-8")
        started = time.monotonic()
        try:
            answer = self._fork(order, trial)
        finally:
            path.write_bytes(original)
        answer["seconds"] = round(time.monotonic() - started, 2)
        try:
            self._clean()
        except Exception as error:  # whatever became of the servers, the next mutant gets new ones
            print(f"the servers are started again: {error}", file=sys.stderr)
            self._stack.stop()
            self._stack = self._start()
        for name in answer.pop("modules", ()):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        return answer

    def _fork(self, order: dict[str, Any], trial: bool) -> dict[str, Any]:
        told = self._folder / "answer.json"
        told.unlink(missing_ok=True)
        log = self._folder / "pytest.log"
        child = os.fork()
        if child == 0:
            code = 3
            try:
                code = _pytest(order, trial, log, told, self._known)
            finally:
                os._exit(code)
        status = None
        try:
            status = _wait(child, order["seconds"])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # and whatever the tests have started
        if status is None:
            os.waitpid(child, 0)
        answer: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {}
        answer["code"] = None if status is None else os.waitstatus_to_exitcode(status)
        answer["tail"] = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        return answer

    def _clean(self) -> None:
        """Nothing of a run is left to the next; fails if a server does not answer."""
        values = self._stack.admin
        with psycopg.connect(self._stack.superuser_url.replace("+psycopg", ""), autocommit=True) as admin:
            names = admin.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test\\_%'").fetchall()
            for (name,) in names:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        with redis.Redis.from_url(values["REDIS_URL"]) as bells:
            bells.flushall()
        store = boto3.client(
            "s3", endpoint_url=values["AWS_ENDPOINT_URL"], aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1",
        )  # fmt: skip
        for bucket in store.list_buckets()["Buckets"]:
            for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"]):
                if keys := [{"Key": entry["Key"]} for entry in page.get("Contents", ())]:
                    store.delete_objects(Bucket=bucket["Name"], Delete={"Objects": keys})


class _Watch:
    """Orders the tests, and notes what they came to."""

    def __init__(self, first: list[str]) -> None:
        self._first = {name: place for place, name in enumerate(first)}
        self.failed = ""
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._first.get(item.nodeid, len(self._first)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self.seconds[file] = self.seconds.get(file, 0.0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _pytest(order: dict[str, Any], trial: bool, log: Path, told: Path, known: Path) -> int:
    """In the fork: all that is ours is imported anew, from the copy."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ |= {"PRESSWORK_TESTS_STACK": str(known), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = trial
    for name in [name for name in sys.modules if name.startswith(_OURS)]:
        del sys.modules[name]
    importlib.invalidate_caches()
    before = set(sys.modules)
    watch = _Watch(order["first"])
    flags = ["-q", "-x", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", f"timeout={_TEST_SECONDS}"]
    code = 0
    for file in sorted(order["files"], key=lambda file: not any(name.startswith(file) for name in order["first"][:1])):
        code = code or int(pytest.main([file, *flags, f"--basetemp={log.parent / 'tmp'}"], plugins=[watch]))
    answer: dict[str, Any] = {"failed": watch.failed, "files": watch.seconds}
    if not trial:
        answer["modules"] = [name for name in sys.modules if name not in before and not name.startswith(_OURS)]
    told.write_text(json.dumps(answer))
    sys.stdout.flush()
    return code


def _wait(child: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.01)
    return None


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nobody else writes among the answers
    for package in ("services", "worker", "scheduler", "migrations", "tests"):
        compileall.compile_dir(package, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = Path(sys.argv[1])
    slot = Slot(folder)
    try:
        for line in sys.stdin:
            answers.write(json.dumps(slot.run(json.loads(line))) + "\n")
    finally:
        slot.stop()
        shutil.rmtree(folder, ignore_errors=True)  # whoever started us may have been killed
    return 0


if __name__ == "__main__":
    sys.exit(main())
