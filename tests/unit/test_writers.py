"""One writer per table: the SQL of the core is read, and each table is written by one package alone.

Of a deleted job every table is emptied by two functions of the database, which only `deletion` calls (migration 0010).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.core.db import tables

CORE = Path(__file__).parents[2] / "services" / "core"
WRITERS = {
    "jobs": "queue",
    "segments": "queue",
    "images": "queue",
    "counters": "queue",
    "counter_deltas": "queue",
    "rates": "queue",
    "failure_deltas": "queue",
    "failure_counts": "queue",
    "failure_hours": "queue",
    "claims": "queue",
    "results": "queue",
    "image_scores": "queue",
    "engines": "queue",
    "failures": "queue",
    "tenants": "tenants",
    "tenant_usage": "tenants",
    "tenant_usage_deltas": "tenants",
    "payloads": "jobs",
    "job_chunks": "jobs",
    "job_inputs": "jobs",
    "idempotency": "jobs",
    "files": "files",
    "uploads": "files",
    "upload_parts": "files",
    "exports": "exports",
    "export_files": "exports",
    "datasets": "datasets",
    "dataset_versions": "datasets",
    "dataset_shards": "datasets",
    "dataset_files": "datasets",
    "dataset_jobs": "datasets",
    "bulk_acts": "bulk",
    "marks": "marks",
    "mark_counts": "marks",
    "catalogues": "catalogues",
    "catalogue_runs": "catalogues",
    "catalogue_changes": "catalogues",
    "catalogue_versions": "catalogues",
    "catalogue_entries": "catalogues",
    "catalogue_destinations": "catalogues",
    "catalogue_copies": "catalogues",
    "api_keys": "tenants",
    "sessions": "tenants",
    "sign_in_links": "tenants",
    "views": "tenants",
    "policy_terms": "policy",
    "license_acceptances": "policy",
    "models": "fleet",
    "model_shapes": "fleet",
    "model_classes": "fleet",
    "workers": "fleet",
    "drains": "fleet",
    "render_rates": "fleet",
    "schedules": "schedules",
    "schedule_runs": "schedules",
    "webhook_cursor": "webhooks",
    "webhook_endpoints": "webhooks",
    "webhook_deliveries": "webhooks",
    "webhook_tries": "webhooks",
    "leases": "db",
    "installation": "storage",
    "events": "events",
    "audit_cursor": "trail",
    "audit_seals": "trail",
    "retention_rules": "retention",
    "retention_work": "retention",
    "tenant_deletions": "deletion",
    "storage_mark": "auditing",
    "storage_audits": "auditing",
    "storage_orphans": "auditing",
    "storage_findings": "auditing",
}
# What is written: `images`, or `{images_leaf}`, the partition of it that a statement is made for. UPDATE is a write
# where SET follows, not in FOR UPDATE and not in ON CONFLICT DO UPDATE.
_WRITES = re.compile(
    r"\b(?:INSERT\s+INTO|MERGE\s+INTO|DELETE\s+FROM|TRUNCATE|COPY)\s+(?:ONLY\s+)?([^\s(;]+)"
    r"|\bUPDATE\s+(?:ONLY\s+)?(?!SET\b)([^\s(;]+)(?:\s+(?:AS\s+)?(?!SET\b)\w+)?\s+SET\b"
)


ELSEWHERE = {"seen"}  # a table of SQLite in a temporary file: items/custom_ids.py


def texts(source: str) -> Iterator[str]:
    """Every text of a program but its docstrings, what an f-string puts in as `{its source}`."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def writes(source: str) -> set[str]:
    """The tables of the database that a program writes. Those of a file of SQLite are `main.NAME` and `temp.NAME`."""
    return {
        re.sub(r"^\{(\w+)_leaf\}$", r"\1", into or changed)
        for sql in texts(source)
        for into, changed in _WRITES.findall(sql)
        if not (into or changed).startswith(("main.", "temp."))
    }


def test_every_table_is_written_by_one_package_of_the_core():
    found: dict[str, set[str]] = {}
    for path in sorted(CORE.rglob("*.py")):
        for table in writes(path.read_text(encoding="utf-8")) - ELSEWHERE:
            found.setdefault(table, set()).add(path.relative_to(CORE).parts[0])
    assert {table: sorted(packages) for table, packages in found.items()} == {
        table: [package] for table, package in WRITERS.items()
    }
    assert set(WRITERS) == set(tables.metadata.tables)


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("text('UPDATE jobs SET state = 1')", {"jobs"}),
        ("text('UPDATE jobs AS j SET state = 1')", {"jobs"}),
        ("text('SELECT 1 FROM jobs FOR UPDATE SKIP LOCKED')", set()),
        ("text('INSERT INTO a VALUES (1) ON CONFLICT (b) DO UPDATE SET c = 1')", {"a"}),
        ("text('WITH gone AS (DELETE FROM a RETURNING b) INSERT INTO c SELECT b FROM gone')", {"a", "c"}),
        ("sql = f'INSERT INTO {images_leaf} (a) ' 'SELECT 1'", {"images"}),
        ("sql = 'INSERT INTO {payloads_leaf} (a)'.format(payloads_leaf=x)", {"payloads"}),
        ("sql = f'COPY {payloads_leaf} ({columns}) FROM STDIN'", {"payloads"}),
        ("sql = f'UPDATE {table} SET a = 1'", {"{table}"}),  # a name that is not known is not one of the tables
    ],
)
def test_writes_are_found_wherever_a_statement_has_them(source, written):
    assert writes(source) == written
