"""The reference of what a crash means: quarantine, poison, sick devices. See `services/core/queue/quarantine.py`, with
which it shares no code."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from services.core.model.states import ClaimState, ImageState
from tests.simulation.model import Failure, Lease, Model, Place

LATELY = timedelta(minutes=10)
SICK = 3  # crashes on images that had never crashed before
POISON_TIMES, POISON_DEVICES = 3, 2


def child_died(model: Model, worker: str, rendering: Mapping[int, list[Place]], device: str, at: datetime) -> bool:
    """The process is dead. Returns whether its device looks sick."""
    if row := model.workers.get(worker):
        row.state, row.seen_at = "crashed", at
    held = sorted(
        (lease for lease in model.claims.values() if lease.worker == worker and lease.state is ClaimState.OPEN),
        key=lambda lease: lease.id,
    )
    crashed = [lease for lease in held if lease.id in rendering]
    for lease in held:
        if lease not in crashed:
            model.take_back(lease, ClaimState.EXPIRED, device=model.device_of(worker), lost=1, at=at)
    together = sum(len(rendering[lease.id]) for lease in crashed)
    for lease in crashed:
        model.take_back(lease, ClaimState.CRASHED, device=device, lost=0, at=at)
        model.failures += [
            Failure(place, "crash", lease.id, device, together, at)
            for place in rendering[lease.id] if place not in lease.gone
        ]  # fmt: skip
    if not crashed:
        return False
    if _looks_sick(model, device, at):
        device_sick(model, device, at)
        return True
    for lease in crashed:
        _hold_against(model, lease, rendering[lease.id], together, device, at)
    return False


def device_sick(model: Model, device: str, at: datetime) -> None:
    """Its recent crashes are not held against the images."""
    recent = [one for one in model.failures if (one.code, one.device) == ("crash", device) and one.at > at - LATELY]
    for place in {one.place for one in recent}:
        _forgive(model, place)
    for one in recent:
        one.code = "device"
    model.log(f"device/{device}", "device.sick")


def retracted(model: Model, claim_id: int) -> None:
    """It came to settle the claim after all, so it had not crashed."""
    found = [one for one in model.failures if one.claim == claim_id and one.code == "crash"]
    for place in {one.place for one in found}:
        _forgive(model, place)
    for one in found:
        one.code = "device"


def _hold_against(model: Model, lease: Lease, rendering: list[Place], together: int, device: str, at: datetime) -> None:
    for job_id, index in sorted(set(rendering) - lease.gone):
        image = model.jobs[job_id].images[index]
        alone = [
            one for one in model.failures if one.place == (job_id, index) and (one.code, one.batch) == ("crash", 1)
        ]
        is_poison = len(alone) >= POISON_TIMES or len({one.device for one in alone}) >= POISON_DEVICES
        if together == 1 and is_poison:
            model.log(f"job/{job_id}", "image.poison", {"index": index, "device": device})
            model.failures.append(Failure((job_id, index), "poison", lease.id, device, 1, at))
            if image.state is ImageState.QUEUED:
                image.state = ImageState.FAILED
                image.attempt += 1
                model.causes[job_id, "poison"] += 1
        elif image.state is ImageState.QUEUED:
            image.cap = max(1, len(rendering) // 2)
            image.crashes += 1


def _looks_sick(model: Model, device: str, at: datetime) -> bool:
    fresh = _fresh_crashes(model, at)
    live = {
        row.device for row in model.workers.values()
        if row.state != "starting" and at - LATELY <= row.seen_at <= at + LATELY
    }  # fmt: skip
    bad = [one for one, crashes in fresh.items() if crashes >= SICK]
    return (len(live) > 1 and len(bad) * 2 > len(live)) or fresh.get(device, 0) >= SICK


def _fresh_crashes(model: Model, at: datetime) -> dict[str, int]:
    """By device, its crashes on images that had never crashed before, since it last completed a claim."""
    moments: dict[str, set[datetime]] = {}
    for nth, one in enumerate(model.failures):
        if one.code != "crash" or one.at <= at - LATELY:
            continue
        completed = max(
            (
                lease.ended_at
                for lease in model.claims.values()
                if lease.state is ClaimState.SETTLED and lease.rendered and lease.ended_at is not None
                and lease.ended_at > at - LATELY
                and lease.worker in model.workers and model.workers[lease.worker].device == one.device
            ),
            default=None,
        )  # fmt: skip
        before = any(
            other.place == one.place and other.code == "crash" and other.claim != one.claim
            for other in model.failures[:nth]
        )
        if not before and (completed is None or one.at > completed):
            moments.setdefault(one.device, set()).add(one.at)
    return {device: len(found) for device, found in moments.items()}


def _forgive(model: Model, place: Place) -> None:
    if place[0] in model.jobs:
        image = model.jobs[place[0]].images[place[1]]
        if image.state in (ImageState.QUEUED, ImageState.RENDERING):
            image.crashes = max(image.crashes - 1, 0)
