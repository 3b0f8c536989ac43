"""The simulated autoscalers do what Kubernetes and KEDA do, and the chart's settings hold up in a day of work."""

import pytest

from tests.benchmarks import autoscalers, fleet, week
from tests.benchmarks.autoscalers import Always, Fleet, Horizontal
from tests.benchmarks.week import DAY, HOUR, Job

TARGET = {
    "targetSeconds": 100,
    "stabilizationSeconds": 60,
    "cooldownSeconds": 90,
    "pollingSeconds": 15,
    "minReplicas": 0,
}


def fleet_of(replicas: int, backlog: float) -> Fleet:
    return Fleet(replicas, backlog, backlog, 1.0)


def horizontal(window: int = 0, most: int = 100) -> Horizontal:
    return Horizontal(autoscalers.average_value(lambda fleet: fleet.backlog, 100), 1, most, window)


@pytest.mark.parametrize(
    ("replicas", "backlog", "found"),
    [
        (2, 301, 4),  # rounded up
        (2, 219, 2),  # within a tenth of the target
        (2, 221, 3),
        (4, 40, 1),  # never below one
        (1, 10_000, 5),  # four more, or twice as many
        (6, 10_000, 12),
        (80, 20_000, 100),  # the most
    ],
)
def test_it_divides_the_metric_by_its_target_and_not_by_the_pods(replicas: int, backlog: float, found: int) -> None:
    assert horizontal().replicas(0, fleet_of(replicas, backlog)) == found


def test_it_looks_every_fifteen_seconds_and_not_at_zero_pods() -> None:
    scaler = horizontal()
    assert [scaler.replicas(now, fleet_of(1, 300)) for now in (0, 5, 14, 15)] == [3, 1, 1, 3]
    assert horizontal().replicas(0, fleet_of(0, 300)) == 0


def test_scaling_down_waits_for_the_window_and_scaling_up_does_not() -> None:
    scaler = horizontal(window=60)
    pods = 5
    seen = []
    for now in range(0, 120, 15):
        pods = scaler.replicas(now, fleet_of(pods, 500 if now == 0 else 100))
        seen.append(pods)
    assert seen == [5, 5, 5, 5, 5, 1, 1, 1]
    assert scaler.replicas(120, fleet_of(1, 300)) == 3


def test_keda_goes_to_one_when_there_is_work_and_to_zero_a_cooldown_after_it() -> None:
    scaler = autoscalers.keda(lambda fleet: fleet.backlog, TARGET, 8)
    assert scaler.replicas(0, fleet_of(0, 0)) == 0
    assert scaler.replicas(15, fleet_of(0, 0.1)) == 1
    seen = [scaler.replicas(now, fleet_of(1, 0)) for now in range(30, 135, 15)]
    assert seen == [1, 1, 1, 1, 1, 1, 0]
    warm = autoscalers.keda(lambda fleet: fleet.backlog, TARGET | {"minReplicas": 1}, 8)
    assert warm.replicas(10**6, fleet_of(1, 0)) == 1


def test_a_pod_is_paid_while_it_starts_and_works_only_then() -> None:
    jobs = [Job(0, 100, 1.0, 60, is_interactive=True), Job(0, 100, 1.0, 10)]
    slow = week.simulate(Always(2), jobs, 300, ends=HOUR)
    assert slow.pod_hours == pytest.approx(2, abs=0.01)
    # The pod that stood does all of it, small jobs first.
    assert (slow.waited, slow.late, slow.worst) == (100, 1.0, 190)
    quick = week.simulate(Always(2), jobs, 0, ends=HOUR)
    assert (quick.waited, quick.late, quick.worst) == (50 + week.STEP, 0.5, 90 + week.STEP)


def test_as_shipped_a_day_costs_less_than_its_rivals_and_less_comes_late() -> None:
    jobs = [job for job in week.arrivals() if job.at < DAY]
    found = {name: week.simulate(make(), jobs, 300, ends=DAY) for name, make in fleet.policies().items()}
    ours = found["as shipped"]
    assert ours.pod_hours < 0.6 * found["CPU at 70 %"].pod_hours
    assert ours.pod_hours < 0.4 * found["always 5 pods, the least in time"].pod_hours
    assert ours.late < found["as shipped, no window, no cooldown"].late
    assert ours.late < found["100 images queued a pod, KEDA's defaults"].late
    assert found["always 2 pods"].late > 0.5
