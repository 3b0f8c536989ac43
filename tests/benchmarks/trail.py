"""trail: the audit trail with a million events is exported and verified, each time beside a tenth of it.

`EVENTS` sets how many; a quarter is sealed one event at a time, as on a quiet day. Time for each record and the most
memory should not grow with their number. The command is a process of its own.
"""

import os
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, text

from services.core.db import database as databases
from services.core.db.database import Database
from services.core.events import numbering
from services.core.tenants import api_keys
from services.core.trail import sealing
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report
from tests.processes import PRESSWORK
from tests.web import serving

EVENTS = int(os.environ.get("EVENTS", "1000000"))
TENANTS = 20
_TENANTS = "INSERT INTO tenants (name) SELECT 'team-' || i FROM generate_series(1, :count) i"
_FILL = """
INSERT INTO events (tenant_id, at, actor, kind, subject, data, seq)
SELECT 1 + i % :tenants, now() - make_interval(secs => (:count - i) * 0.5), 'key/abcdefgh', 'key.issued', 'key/' || i,
       '{"name": "nightly", "scopes": ["view", "submit"]}', :after + i
FROM generate_series(1, :count) i
"""


def run() -> None:
    with benchmark_stack() as stack:
        with stack.database.begin_system() as connection:
            connection.execute(text("UPDATE tenants SET operator = true"))
            connection.execute(text(_TENANTS), {"count": TENANTS})
            key = api_keys.issue_key(connection, stack.settings.secret, 1, "auditor")
            numbering.number(connection)
        owner = create_engine(databases.driver_url(stack.servers.superuser_url))  # no program may number events itself
        small = _measured(stack, owner, key, EVENTS // 10)
        large = _measured(stack, owner, key, EVENTS - EVENTS // 10)
        owner.dispose()
    report(
        "trail", EVENTS / large["export_seconds"], (EVENTS // 10) / small["export_seconds"], "records/s exported",
        "a tenth of them", events=EVENTS, **{f"tenth_{name}": value for name, value in small.items()}, **large,
    )  # fmt: skip


def _measured(stack: BenchmarkStack, owner: Engine, key: str, more: int) -> dict[str, Any]:
    seal_seconds = _fill(stack.database, owner, more)
    with stack.database.begin_system() as connection:
        seals = connection.execute(text("SELECT count(*) FROM audit_seals")).scalar_one()
        middle = connection.execute(text("SELECT max(at) - (max(at) - min(at)) / 2 FROM events")).scalar_one()
    first, second, part = (stack.folder / f"{name}.jsonl" for name in ("first", "second", "part"))
    found: dict[str, Any] = {"seals": seals, "seal_seconds": seal_seconds}
    with serving(stack.settings) as url:
        environ = {"PRESSWORK_URL": url, "PRESSWORK_API_KEY": key}
        found |= _run("export", environ, "export", "--tenant", "*", "-o", first)
        found |= _run("again", environ, "export", "--tenant", "*", "-o", second)
        found |= _run("until", environ, "export", "--tenant", "*", "-o", part, "--until", middle.isoformat())
        found |= _run("verify", environ, "verify", first)
        found |= _run("verify_two", environ, "verify", first, second)
    return found


def _fill(database: Database, owner: Engine, more: int) -> float:
    """A quarter of them is sealed a few at a time. Returns how long it took to seal the others."""
    with owner.begin() as connection:
        after = connection.execute(text("SELECT max(seq) FROM events")).scalar_one()
        connection.execute(text(_FILL), {"count": more, "after": after, "tenants": TENANTS})
    few, reached = TENANTS, 0
    while reached < more // 4:
        with database.begin_system() as connection:
            reached += sealing.seal(connection, few)
    began = time.monotonic()
    while True:
        with database.begin_system() as connection:
            if not sealing.seal(connection):
                return round(time.monotonic() - began, 1)


def _run(name: str, environ: dict[str, str], *words: str | Path) -> dict[str, Any]:
    """Seconds, the processor's seconds, and the most memory of the process in MiB."""
    began, most, before = time.monotonic(), 0, _processor_seconds()
    process = subprocess.Popen(
        [PRESSWORK, "audit", *words], env=os.environ | environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        most = max(most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        time.sleep(0.05)
    assert process.returncode == 0, f"presswork audit {words[0]} ended with {process.returncode}"
    return {
        f"{name}_seconds": round(time.monotonic() - began, 1),
        f"{name}_processor_seconds": round(_processor_seconds() - before, 1),
        f"{name}_mib": most // 1024,
    }


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
