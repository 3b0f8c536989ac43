"""Compares the database with the model, and with what must hold whatever the model says."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from services.core.model.states import FINAL_IMAGE_STATES, IMAGE_MOVES, ClaimState, ImageState
from tests.simulation.model import Lease, Model

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TABLES = ("jobs", "images", "claims", "results", "failures", "causes")
_PLACE = itemgetter(0, 1)
Snapshot = dict[str, list[list[Any]]]


def same(found: Snapshot, model: Model) -> None:
    """Every row is what the model says, and each job's new events are those that it expects, in order."""
    wrong = []
    for table in _TABLES:
        rows, expected = found[table], _expected(model, table)
        if sorted(rows, key=_PLACE) == sorted(expected, key=_PLACE):
            continue
        there, wanted = (Counter(map(repr, some)) for some in (rows, expected))
        wrong += [f"{table}: {row} is there" for row in (there - wanted).elements()]
        wrong += [f"{table}: {row} is missing" for row in (wanted - there).elements()]
    fresh: dict[str, list[tuple[str, Any]]] = {}
    for _, _, kind, subject, data in found["events"]:
        fresh.setdefault(subject, []).append((kind, data))
    for subject in fresh.keys() | model.fresh_events.keys():
        logged, expected = fresh.get(subject, []), model.fresh_events.get(subject, [])
        alike = [kind for kind, _ in logged] == [kind for kind, _ in expected] and all(
            data is None or logged[nth][1] == data for nth, (_, data) in enumerate(expected)
        )
        wrong += [] if alike else [f"events of {subject}: {logged}, and expected were {expected}"]
    model.fresh_events.clear()
    assert not wrong, "\n".join(["the database is not what it should be:", *sorted(wrong)])


def possible(found: Snapshot, before: Snapshot | None) -> None:
    """What must hold in every read, from the rows alone."""
    images = {(job, index): (state, claim) for job, index, state, _, _, _, claim, _, _ in found["images"]}
    by_job: dict[int, Counter[int]] = {}
    for (job, _), (state, _) in images.items():
        by_job.setdefault(job, Counter())[state] += 1
    for job, _, _, _, total, _, _, *counts in found["jobs"]:
        assert sum(counts) == total, f"the counts of job {job} do not add up to {total}: {counts}"
        assert counts == [by_job.get(job, Counter())[state] for state in range(5)], f"the counts of job {job}: {counts}"
    held = Counter(claim for state, claim in images.values() if state == ImageState.RENDERING)
    open_claims = {number: size for number, _, state, size, *_ in found["claims"] if state == ClaimState.OPEN}
    assert held == open_claims, f"open claims {open_claims} and what they hold, {dict(held)}"
    done = {place for place, (state, _) in images.items() if state == ImageState.DONE}
    results = [(job, index) for job, index, *_ in found["results"]]
    assert sorted(results) == sorted(done), "each done image has one result, and no other image has any"
    if before is None:
        return
    for job, index, state, *_ in before["images"]:
        if (job, index) in images and state in FINAL_IMAGE_STATES:
            assert images[job, index][0] == state, f"image {index} left the state {ImageState(state).word}"
    then = {(job, index): (state, attempt, lost) for job, index, state, attempt, lost, *_ in before["images"]}
    for job, index, state, attempt, lost, *_ in found["images"]:
        was = then.get((job, index), (state, attempt, lost))
        allowed = state == was[0] or was[0] == ImageState.QUEUED or state in IMAGE_MOVES[ImageState(was[0])]
        assert allowed, f"image {index} went from {was[0]} to {state}"
        assert attempt >= was[1] and attempt <= 1 and lost >= was[2], "an attempt was taken back, or used for nothing"
    stopped = {job[0] for job in before["jobs"] if job[1] in ("cancelling", "cancelled", "expired")}
    grown = {tuple(row) for row in found["results"]} - {tuple(row) for row in before["results"]}
    assert not any(row[0] in stopped for row in grown), "a result came after the cancel was visible"


def _expected(model: Model, table: str) -> list[list[Any]]:
    if table == "jobs":
        return [
            [job.id, str(job.state), job.paused, job.priority, len(job.images), job.reason, job.deleted, *job.counts]
            for job in model.jobs.values()
        ]
    if table == "images":
        return [
            [job.id, index, int(one.state), one.attempt, one.lost, one.crashes, one.claim, one.width, one.cap]
            for job in model.jobs.values()
            for index, one in enumerate(job.images)
        ]
    if table == "claims":
        return [
            [one.id, one.worker, str(one.state), len(one.places), _seconds(one.expires_at), one.jobs, *_tenants(one)]
            for one in model.claims.values()
        ]
    if table == "results":
        return [[*place, *found] for place, found in model.results.items()]
    if table == "failures":
        return [[*one.place, one.code, one.claim, one.device, one.batch] for one in model.failures]
    return [[job, code, images] for (job, code), images in model.causes.items()]


def _tenants(lease: Lease) -> tuple[list[int], list[int]]:
    return sorted(lease.tenants), [lease.tenants[tenant] for tenant in sorted(lease.tenants)]


def _seconds(moment: datetime) -> str:
    milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"
