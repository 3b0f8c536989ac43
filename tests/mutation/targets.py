"""What is mutated, and which tests must notice: the one table to change when a module or a file of tests moves.

The tests of a module stand with the quickest first: most mutants are killed by them, and the others never run.
"""

from dataclasses import dataclass

_LEDGER = "tests/integration/test_queue.py"
_ROWS = "tests/integration/test_queue_rows.py"
_LEAVING = "tests/integration/test_leaving_rows.py"
_LETTING_GO = "tests/integration/test_letting_go.py"
_TURNS = "tests/integration/test_queue_turns.py"
_JOBS = "tests/integration/test_jobs.py"
_DRAFTS = "tests/integration/test_drafts.py"
_EVENTS = "tests/integration/test_events.py"
_BULK = "tests/integration/test_bulk.py"
_WARNINGS = "tests/integration/test_warnings.py"

_CATALOGUE_RUNS = "tests/integration/test_catalogue_runs.py"
_CATALOGUE_PAGES = "tests/integration/test_catalogue_pages.py"
_CATALOGUE_COPIES = "tests/integration/test_catalogue_copies.py"


@dataclass(frozen=True, slots=True)
class Target:
    path: str
    tests: tuple[str, ...]


TARGETS = {
    "claims": Target("services/core/queue/claims.py", (_LEAVING, _ROWS, _LEDGER)),
    "settlement": Target("services/core/queue/settlement.py", (_ROWS, _LETTING_GO, _LEDGER)),
    "expiry": Target("services/core/queue/expiry.py", (_ROWS, _LEDGER)),
    "image_moves": Target("services/core/queue/image_moves.py", (_ROWS, _LEDGER)),
    "job_states": Target("services/core/queue/job_states.py", (_TURNS, _WARNINGS, _JOBS, _ROWS, _EVENTS)),
    "segments": Target("services/core/queue/segments.py", (_ROWS, _TURNS, _LEDGER, _JOBS)),
    "images": Target("services/core/queue/images.py", (_JOBS, _DRAFTS, "tests/integration/test_job_actions.py")),
    "quarantine": Target("services/core/queue/quarantine.py", ("tests/integration/test_quarantine.py", _EVENTS)),
    "lifecycle": Target("services/core/jobs/lifecycle.py", (_JOBS,)),
    "leases": Target("services/core/db/leases.py", ("tests/integration/test_leases.py",)),
    "s3": Target(
        "services/core/storage/s3.py", ("tests/integration/test_storage.py", "tests/integration/test_store_peers.py")
    ),
    "drafts": Target("services/core/jobs/drafts.py", (_JOBS, _DRAFTS)),
    "submissions": Target(
        "services/core/jobs/submissions.py", ("tests/unit/test_submissions.py", "tests/unit/test_matrices.py", _JOBS)
    ),
    "numbering": Target("services/core/events/numbering.py", (_EVENTS,)),
    "deletion": Target(
        "services/core/deletion/jobs.py",
        ("tests/integration/test_deletion_rows.py", "tests/integration/test_deletion.py"),
    ),
    "bulk": Target("services/core/bulk/bulk.py", (_BULK,)),
    "bulk_matching": Target("services/core/bulk/matching.py", (_BULK,)),
    "bulk_task": Target("services/core/bulk/task.py", (_BULK,)),
    "marks": Target("services/core/marks/marks.py", ("tests/integration/test_marks.py",)),
    "lanes": Target("services/core/jobs/lanes.py", ("tests/integration/test_lanes.py",)),
    "schedule_runs": Target("services/core/schedules/runs.py", ("tests/integration/test_schedules.py",)),
    "schedule_firing": Target("services/core/schedules/firing.py", ("tests/integration/test_schedules.py",)),
    "catalogue_planning": Target(
        "services/core/catalogues/planning.py", ("tests/unit/test_catalogue_planning.py", _CATALOGUE_RUNS)
    ),
    "catalogue_publishing": Target(
        "services/core/catalogues/publishing.py", ("tests/integration/test_catalogues_api.py",)
    ),
    "catalogue_reviewing": Target("services/core/catalogues/reviewing.py", (_CATALOGUE_PAGES, _CATALOGUE_RUNS)),
    "catalogue_unmarked": Target("services/core/catalogues/unmarked.py", (_CATALOGUE_PAGES, _CATALOGUE_RUNS)),
    "catalogue_redrawing": Target("services/core/catalogues/redrawing.py", (_CATALOGUE_RUNS,)),
    "catalogue_tidying": Target("services/core/catalogues/tidying.py", (_CATALOGUE_RUNS,)),
    "catalogue_copying": Target("services/core/catalogues/copying.py", (_CATALOGUE_COPIES,)),
    "catalogue_copies": Target("services/core/catalogues/copies.py", (_CATALOGUE_COPIES,)),
    "retries": Target("worker/retries.py", ("tests/unit/test_retries.py",)),
    "batching": Target("worker/batching.py", ("tests/unit/test_retries.py",)),
    "claim_sizes": Target("worker/claim_sizes.py", ("tests/unit/test_claim_sizes.py",)),
    "sharding": Target("worker/sharding.py", ("tests/unit/test_sharding.py", "tests/integration/test_shards.py")),
    "members": Target("services/core/storage/members.py", ("tests/unit/test_members.py",)),
}
