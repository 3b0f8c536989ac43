"""The process's registry, and the metrics that a program counts into, by their names in `definitions`."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from services.core.metrics.definitions import BY_NAME

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter, which nothing here asks for
REGISTRY = CollectorRegistry()


def counter(name: str) -> Counter:
    return Counter(*_arguments(name, "counter"), registry=REGISTRY)


def gauge(name: str) -> Gauge:
    """Among the processes of one program, the value that was set last holds."""
    return Gauge(*_arguments(name, "gauge"), registry=REGISTRY, multiprocess_mode="mostrecent")


def histogram(name: str) -> Histogram:
    return Histogram(*_arguments(name, "histogram"), registry=REGISTRY, buckets=BY_NAME[name].buckets)


def family(name: str, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    """A gauge whose values, by their labels, were read just now."""
    metric = BY_NAME[name]
    found = GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)
    for labels, value in values.items():
        found.add_metric(labels, value)
    return found


def _arguments(name: str, kind: str) -> tuple[str, str, tuple[str, ...]]:
    metric = BY_NAME[name]
    assert metric.kind == kind, f"{name} is a {metric.kind}"
    return metric.name, metric.text, metric.labels


class Read(Collector):
    """A gauge that is read when it is asked for."""

    def __init__(self, name: str, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        self._name, self._read = name, read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield family(self._name, self._read())


class Machine(Collector):
    """Which program this is, and the disks of the folders that it writes to, by the name of each. The folder for
    temporary files must exist."""

    def __init__(self, program: str, folders: Mapping[str, str] | None = None) -> None:
        self._build: dict[tuple[str, ...], float] = {(program, version("presswork")): 1.0}
        self._folders = {"temporary": tempfile.gettempdir(), **(folders or {})}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield family("presswork_build_info", self._build)
        disks = {}
        for name, folder in self._folders.items():
            try:
                disks[name] = shutil.disk_usage(folder)
            except OSError:  # not made yet
                continue
        yield family("presswork_disk_free_bytes", {(name,): disk.free for name, disk in disks.items()})
        yield family("presswork_disk_bytes", {(name,): disk.total for name, disk in disks.items()})
