"""fleet: a week of work under the chart's autoscaling as it ships, and under what one would try instead: cost and
lateness, by the autoscalers' own formulas. Nothing is measured but arithmetic: the machine does not matter."""

from collections.abc import Callable
from typing import Any

import yaml

from tests.benchmarks import autoscalers, week
from tests.benchmarks.autoscalers import Always, Autoscaler, Horizontal
from tests.benchmarks.report import report
from tests.charts import CHART

MOST = 8
DOLLARS = 2.5  # a pod and hour
COLD_STARTS = (15, 60, 300)
KEDA_DEFAULTS = {"minReplicas": 0, "stabilizationSeconds": 300, "cooldownSeconds": 300, "pollingSeconds": 30}


def shipped() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())["autoscaling"]
    return found


def policies() -> dict[str, Callable[[], Autoscaler]]:
    """What is compared, by name."""

    def by_backlog(**changed: float) -> Callable[[], Autoscaler]:
        return lambda: autoscalers.keda(lambda fleet: fleet.backlog, {**shipped(), **changed}, MOST)

    def by_queue(images: int) -> Callable[[], Autoscaler]:
        settings = {**KEDA_DEFAULTS, "targetSeconds": images}
        return lambda: autoscalers.keda(lambda fleet: fleet.queued, settings, MOST)

    def by_cpu() -> Autoscaler:
        desired = autoscalers.utilization(lambda fleet: 0.05 + 0.95 * fleet.busy, 0.7)
        return Horizontal(desired, 1, MOST, 300)

    return {
        "as shipped": by_backlog(),
        "as shipped, one kept warm": by_backlog(minReplicas=1),
        "as shipped, no window, no cooldown": by_backlog(stabilizationSeconds=0, cooldownSeconds=0),
        "100 images queued a pod, KEDA's defaults": by_queue(100),
        "CPU at 70 %": by_cpu,
        "always 8 pods": lambda: Always(MOST),
        "always 5 pods, the least in time": lambda: Always(5),
        "always 2 pods": lambda: Always(2),
    }


def run() -> None:
    jobs = week.arrivals()
    work = sum(job.images * job.seconds for job in jobs) / week.HOUR
    print(f"{len(jobs)} jobs, {work:.0f} accelerator-hours in a week; cold starts of {COLD_STARTS} s")
    print("| autoscaling | dollars | late images, and 95 % of small jobs done within |\n|---|---|---|")
    table: dict[str, list[week.Outcome]] = {}
    for name, make in policies().items():
        table[name] = [week.simulate(make(), jobs, cold) for cold in COLD_STARTS]
        cost = ", ".join(f"{found.pod_hours * DOLLARS:,.0f}" for found in table[name])
        late = ", ".join(f"{found.late:.1%} in {found.waited / 60:.1f} min" for found in table[name])
        print(f"| {name} | {cost} | {late} |", flush=True)
    ours, always = (table[name][-1].pod_hours * DOLLARS for name in ("as shipped", "always 8 pods"))
    report(
        "fleet", ours, always, "dollars a week", "always 8 pods", accelerator_hours=round(work, 1),
        cold_starts=COLD_STARTS, dollars_a_pod_hour=DOLLARS, most_pods=MOST,
        pod_hours={name: [round(one.pod_hours, 1) for one in found] for name, found in table.items()},
        late={name: [round(one.late, 4) for one in found] for name, found in table.items()},
        worst_late_minutes={name: [round(one.worst / 60) for one in found] for name, found in table.items()},
        small_jobs_seconds={name: [round(one.waited) for one in found] for name, found in table.items()},
    )  # fmt: skip
