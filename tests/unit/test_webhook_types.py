"""The types of messages are the kinds of events that the core logs."""

import re
from pathlib import Path

import pytest

from services.core.db import tables
from services.core.webhooks import retries, types

CORE = Path(__file__).parents[2] / "services" / "core"


def logged() -> set[str]:
    """Kinds that stand in the core's statements as texts of SQL, or in its calls, where they are logged. What no tenant
    has is sent to nobody."""
    found = set(tables.PROGRESS)
    for path in CORE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "log." in source or "append_of_job" in source:
            found |= set(re.findall(r"'([a-z]+\.[a-z_]+)'", source))
            found |= set(re.findall(r'append(?:_of_job)?\(\s*\w+,\s*"([a-z]+\.[a-z_]+)"(?!.*tenant_id=None)', source))
    return {kind for kind in found if not kind.endswith((".py", "_")) and not kind.startswith("app.")}


def test_every_kind_that_is_logged_is_a_type_or_withheld():
    kinds = logged()
    assert {"job.completed", "schedule.deleted", "dataset.version_completed", "webhook.created"} <= kinds
    assert {"job.images_refused", "policy.refused"} <= kinds
    assert sorted(kind for kind in kinds if types.is_sent(kind) and kind not in types.TYPES) == []
    assert not any(types.is_sent(kind) for kind in ("webhook.disabled", "worker.drained"))


@pytest.mark.parametrize("pattern", ["*", "job.*", "batch.*", "job.completed", "batch.failed"])
def test_patterns_that_some_type_fits_are_taken(pattern):
    assert types.is_pattern(pattern) and any(types.fits([pattern], name) for name in types.TYPES)


@pytest.mark.parametrize(
    "pattern", ["", "job", "job.", "job.done", "jobs.*", "worker.*", "**", "JOB.*", "job.*.x", "*.*"]
)
def test_patterns_that_no_type_fits_are_refused(pattern):
    assert not types.is_pattern(pattern)


def test_a_pattern_fits_its_own_noun_alone():
    assert types.fits(["job.*"], "job.failed") and not types.fits(["job.*"], "batch.failed")
    assert types.fits(types.USUAL, "batch.expired") and not types.fits(types.USUAL, "job.started")


def test_pauses_grow_and_differ_by_chance_within_a_fifth():
    pauses = [retries.pause(number) for number in range(1, 12)]
    assert pauses[9:] == [None, None] and all(pauses[:9])
    assert all(low <= pause <= low * 1.2 for low, pause in zip(retries.PAUSES, pauses, strict=False))
    assert len({retries.pause(3) for _ in range(20)}) > 1
    assert retries.rest(1) < 3 and 300 <= retries.rest(1_000) <= 360
