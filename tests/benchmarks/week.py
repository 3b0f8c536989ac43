"""A week of a shop's work on a fleet of simulated pods: what it costs, and what comes late.

Work is a fluid of accelerator-seconds: jobs in their order, interactive ones first, on all pods that are ready. A pod
is paid from when it is asked for until it has gone, so cold starts are paid. Pods that start go first, then the
youngest.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.autoscalers import Autoscaler, Fleet

STEP = 5  # seconds
HOUR, DAY = 3600, 86_400
WEEK = 7 * DAY
BATCH_SECONDS = 30.0  # of work that a pod holds
GRACE_SECONDS = 30  # until a pod that is removed has finished its batch


@dataclass(frozen=True, slots=True)
class Job:
    """`images` of so many accelerator-seconds each, wanted `within` seconds of `at`."""

    at: int
    images: int
    seconds: float
    within: int
    is_interactive: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """`pod_hours` are paid. `late`: the share of images that came after they were wanted; `worst`: by how many seconds
    at most; `waited`: the seconds within which 95 % of interactive jobs were done."""

    pod_hours: float
    late: float
    worst: float
    waited: float


def arrivals(seed: int = 1) -> list[Job]:
    """From Monday 00:00: on workdays bulk at noon and small jobs from 8 to 18 h, a catalogue at 1 h every night."""
    chance = random.Random(seed)
    jobs = []
    for day in range(7):
        midnight = day * DAY
        jobs.append(Job(midnight + HOUR, chance.randint(18_000, 22_000), 4.0, 5 * HOUR))
        if day >= 5:
            continue
        jobs.append(Job(midnight + 12 * HOUR, chance.randint(14_000, 18_000), 2.0, 2 * HOUR))
        at = midnight + 8 * HOUR
        while (at := at + round(chance.expovariate(20 / HOUR)) + 1) < midnight + 18 * HOUR:
            jobs.append(Job(at, chance.randint(4, 40), 1.0, 5 * 60, is_interactive=True))
    return sorted(jobs, key=lambda job: job.at)


def simulate(autoscaler: Autoscaler, jobs: Sequence[Job], cold_start: int, *, ends: int = WEEK) -> Outcome:
    """Runs until `ends` and until all is done, with pods that need `cold_start` seconds until they render."""
    coming = deque(jobs)
    lanes: tuple[deque[list[float]], deque[list[float]]] = (deque(), deque())  # [seconds left, the job's place]
    done: dict[int, tuple[float, Job]] = {}
    pods = [0]  # when each is ready; the first one stands
    now, paid, place, backlog, images = 0, 0.0, 0, 0.0, 0.0
    known: list[Job] = []
    while now < ends or backlog > 0:
        while coming and coming[0].at <= now:
            job = coming.popleft()
            lanes[not job.is_interactive].append([job.images * job.seconds, place])
            known.append(job)
            place += 1
            backlog += job.images * job.seconds
            images += job.images
        ready = sum(at <= now for at in pods)
        held = min(backlog, ready * BATCH_SECONDS)
        share = (backlog - held) / backlog if backlog else 0.0
        fleet = Fleet(len(pods), backlog, images * share, min(1.0, backlog / (ready * STEP)) if ready else 0.0)
        wanted = autoscaler.replicas(now, fleet)
        pods += [now + cold_start] * (wanted - len(pods))
        while len(pods) > wanted:
            pods.remove(max(pods))
            paid += GRACE_SECONDS
        paid += len(pods) * STEP
        left = float(ready * STEP)
        for lane in lanes:
            while lane and left > 0:
                entry = lane[0]
                used = min(entry[0], left)
                entry[0] -= used
                left -= used
                job = known[int(entry[1])]
                backlog -= used
                images -= used / job.seconds
                if entry[0] <= 1e-9:
                    lane.popleft()
                    done[int(entry[1])] = (now + STEP, job)
        if not lanes[0] and not lanes[1]:
            backlog = images = 0.0
        now += STEP
        if now > ends + WEEK:  # what is left by then is late
            break
    return _outcome(paid, done, sum(job.images for job in jobs))


def _outcome(paid: float, done: dict[int, tuple[float, Job]], images: int) -> Outcome:
    late = [(end - job.at - job.within, job.images) for end, job in done.values() if end - job.at > job.within]
    missing = images - sum(job.images for _, job in done.values())
    waits = sorted(end - job.at for end, job in done.values() if job.is_interactive)
    return Outcome(
        paid / HOUR,
        (sum(count for _, count in late) + missing) / images,
        max((seconds for seconds, _ in late), default=0.0),
        waits[int(len(waits) * 0.95)] if waits else 0.0,
    )
