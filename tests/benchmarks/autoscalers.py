"""The autoscalers' own formulas, to be run on a simulated fleet: Kubernetes' HorizontalPodAutoscaler as KEDA sets it
up, KEDA's way to zero and back, and what one would try instead.

From kubernetes/kubernetes pkg/controller/podautoscaler (an external metric's AverageValue, tolerance, stabilization
window, scaling policies) and kedacore/keda pkg/scaling/executor (activation, cooldown).
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

SYNC_SECONDS = 15  # how often the HorizontalPodAutoscaler looks
TOLERANCE = 0.1
UP_PERCENT, UP_PODS = 100, 4  # of scaling up, the larger one in each look


@dataclass(frozen=True, slots=True)
class Fleet:
    """What an autoscaler may see. `backlog`: accelerator-seconds queued and rendering; `queued`: images that wait;
    `busy`: the share of the pods that are ready which have work."""

    replicas: int
    backlog: float
    queued: float
    busy: float


class Autoscaler(Protocol):
    def replicas(self, now: int, fleet: Fleet) -> int:
        """How many pods there shall be, asked each second or less often. `now` in seconds."""
        ...


@dataclass
class Always:
    pods: int

    def replicas(self, now: int, fleet: Fleet) -> int:
        return self.pods


@dataclass
class Horizontal:
    """A HorizontalPodAutoscaler. `desired` is what its metric recommends, before tolerance is looked at: pods, and the
    ratio of the metric to its target."""

    desired: Callable[[Fleet], tuple[int, float]]
    least: int
    most: int
    window: int  # seconds: stabilization of scaling down
    _recommended: deque[tuple[int, int]] = field(default_factory=deque)
    _next: int = 0

    def replicas(self, now: int, fleet: Fleet) -> int:
        if not fleet.replicas or now < self._next:  # at zero it is disabled
            return fleet.replicas
        self._next = now + SYNC_SECONDS
        pods, ratio = self.desired(fleet)
        if abs(ratio - 1) <= TOLERANCE:
            pods = fleet.replicas
        self._recommended.append((now, pods))
        while self._recommended[0][0] < now - self.window:
            self._recommended.popleft()
        stable = pods if pods >= fleet.replicas else min(fleet.replicas, max(one for _, one in self._recommended))
        limit = max(fleet.replicas + UP_PODS, math.ceil(fleet.replicas * (1 + UP_PERCENT / 100)))
        return max(self.least, min(stable, limit, self.most))


@dataclass
class Keda:
    """KEDA above a HorizontalPodAutoscaler: from zero to one when `metric` is above 0, and to zero when it has not been
    for the cooldown."""

    metric: Callable[[Fleet], float]
    horizontal: Horizontal
    least: int
    cooldown: int
    polling: int
    _active_at: int = -(10**9)
    _next: int = 0

    def replicas(self, now: int, fleet: Fleet) -> int:
        pods = self.horizontal.replicas(now, fleet)
        if now < self._next:
            return pods
        self._next = now + self.polling
        if self.metric(fleet) > 0:
            self._active_at = now
            return pods or max(self.least, 1)
        if self.least == 0 and self._active_at + self.cooldown < now:
            return 0
        return pods


def average_value(metric: Callable[[Fleet], float], target: float) -> Callable[[Fleet], tuple[int, float]]:
    """An external metric's AverageValue: it is divided by the target, and not by the pods that there are."""

    def desired(fleet: Fleet) -> tuple[int, float]:
        found = metric(fleet)
        return math.ceil(found / target), found / (target * fleet.replicas)

    return desired


def utilization(share: Callable[[Fleet], float], target: float) -> Callable[[Fleet], tuple[int, float]]:
    """A resource's utilization, of the pods that there are."""

    def desired(fleet: Fleet) -> tuple[int, float]:
        ratio = share(fleet) / target
        return math.ceil(fleet.replicas * ratio), ratio

    return desired


def keda(metric: Callable[[Fleet], float], settings: Mapping[str, Any], most: int) -> Keda:
    """As templates/autoscaling.yaml sets it up from these values."""
    least = int(settings["minReplicas"])
    desired = average_value(metric, float(settings["targetSeconds"]))
    horizontal = Horizontal(desired, max(least, 1), most, int(settings["stabilizationSeconds"]))
    return Keda(metric, horizontal, least, int(settings["cooldownSeconds"]), int(settings["pollingSeconds"]))
