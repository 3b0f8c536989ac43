"""What is mutated, and which tests must notice: the one table to change when a module or a file of tests moves.

The tests of a module stand with the quickest first: most mutants are killed by them, and the others never run.
"""

from dataclasses import dataclass

_LEDGER = "tests/integration/test_ledger.py"
_ROWS = "tests/integration/test_ledger_rows.py"
_JOBS = "tests/integration/test_jobs.py"
_DRAFTS = "tests/integration/test_drafts.py"


@dataclass(frozen=True, slots=True)
class Target:
    path: str
    tests: tuple[str, ...]


TARGETS = {
    "ledger": Target("services/core/queue/ledger.py", (_ROWS, _LEDGER)),
    "suspects": Target("services/core/queue/quarantine.py", ("tests/integration/test_suspects.py",)),
    "jobs": Target("services/core/jobs/lifecycle.py", (_JOBS,)),
    "leases": Target("services/core/db/leases.py", ("tests/integration/test_leases.py",)),
    "storage": Target("services/core/storage/s3.py", ("tests/integration/test_storage.py",)),
    "drafts": Target("services/core/jobs/drafts.py", (_JOBS, _DRAFTS)),
    "intake": Target("services/core/jobs/submissions.py", ("tests/unit/test_intake.py", _JOBS)),
    "retries": Target("worker/retries.py", ("tests/unit/test_retries.py",)),
    "batching": Target("worker/batching.py", ("tests/unit/test_retries.py",)),
}
