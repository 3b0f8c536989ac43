"""What runs in a transaction that may only read neither writes nor locks: Postgres would refuse it, with a 500."""

import re

from tests import reach

_WRITES = re.compile(
    r"\b(INSERT INTO|DELETE FROM|UPDATE [a-z_]+ SET|FOR (NO KEY )?UPDATE|FOR (KEY )?SHARE|nextval|setval)\b"
)
# Reached by name, but not run there: what verbs do to jobs, while they are only counted; the row of a catalogue that is
# locked only where that is asked for; a verb by whose name a page calls something else.
_NOT_RUN = (
    ("services.core.bulk.verbs", "_ACTS"),
    ("services.core.catalogues.catalogues", "_LOCK"),
    ("services.core.catalogues.reviewing", "mark"),
)


def test_no_transaction_that_only_reads_writes_or_locks() -> None:
    found, blocks = [], 0
    for package in ("services.api", "services.core", "services.dashboard", "services.cli", "scheduler", "worker"):
        for begins, uses in reach.read_only_blocks(package):
            blocks += 1
            reached = reach.statements(uses, without=_NOT_RUN)
            found += [f"{begins} reaches {name}" for name, sql in reached.items() if _WRITES.search(sql)]
    assert blocks > 150
    assert not found, "\n".join(found)
