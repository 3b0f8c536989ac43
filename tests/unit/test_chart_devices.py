"""A pool's devices in the chart: a worker for each, and what does not fit them is one sentence."""

import re
from pathlib import Path
from typing import Any

import pytest

from services.core.settings import Settings
from tests.charts import HELM, POOL, helm, kinds, pods, render

pytestmark = pytest.mark.skipif(HELM is None, reason="HELM IS MISSING: the chart is not tested")


def gpus(devices: int = 4, limit: int = 4) -> dict[str, Any]:
    limits = {"memory": "32Gi", "nvidia.com/gpu": limit}
    return POOL | {"pipeline": "torch", "device": "cuda", "devices": devices, "resources": {"limits": limits}}


@pytest.mark.parametrize(("devices", "given"), [(1, ()), (4, ("cuda:0", "cuda:1", "cuda:2", "cuda:3"))])
def test_a_pod_has_a_worker_for_each_of_its_devices(devices: int, given: tuple[str, ...], tmp_path: Path) -> None:
    found = render({"secret": "s", "workers": [gpus(devices, devices)]}, tmp_path)
    [container] = pods(found)["try-worker-cpu"]["containers"]
    values = {entry["name"]: entry.get("value", "redis://set") for entry in container["env"]}
    settings = Settings.read(values | {"DATABASE_URL": "postgresql://set"})
    assert (settings.devices, settings.device) == (given, "cuda")


def test_a_pod_with_several_devices_takes_as_many_times_the_work(tmp_path: Path) -> None:
    pool = {name: value for name, value in gpus().items() if name != "replicas"}
    pool |= {"model": "presswork-mini", "autoscaling": {"maxReplicas": 2, "targetSeconds": 100}}
    found = render({"secret": "s", "autoscaling": {"keySecret": "b"}, "workers": [pool]}, tmp_path)
    [trigger] = kinds(found)["ScaledObject"]["try-worker-cpu"]["spec"]["triggers"]
    assert trigger["metadata"]["targetValue"] == "400"


def test_each_device_s_metrics_are_scraped_and_let_in(tmp_path: Path) -> None:
    two, four = gpus(2, 2) | {"name": "two"}, gpus() | {"name": "four"}
    found = render({"secret": "s", "workers": [POOL, two, four], "serviceMonitor": {"enabled": True}}, tmp_path)
    shown: dict[str, list[int]] = {}
    names: set[str] = set()
    for name, pod in pods(found).items():
        ports = [port for port in pod["containers"][0].get("ports", ()) if port["name"].startswith("metrics")]
        shown[name] = [port["containerPort"] for port in ports]
        names |= {port["name"] for port in ports}
        assert len({port["name"] for port in ports}) == len(ports)
    assert shown["try-worker-cpu"] == shown["try-scheduler"] == [9420]
    assert (shown["try-worker-two"], shown["try-worker-four"]) == ([9420, 9421], [9420, 9421, 9422, 9423])
    [monitor] = kinds(found)["PodMonitor"].values()
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} == names
    [rule] = kinds(found)["NetworkPolicy"]["try-metrics"]["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == names


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        (
            [gpus() | {"resources": POOL["resources"]}],
            "resources.limits ask for no device: add one, such as nvidia.com",
        ),
        ([gpus(8, 4)], "has devices 8 and its resources.limits ask for nvidia.com/gpu: 4; make them equal"),
        ([POOL | {"devices": 2}], "has devices 2 on cpu: several are for cuda and qaic, raise replicas instead"),
        ([gpus() | {"pipeline": "ai100"}], "ai100, which does not run on cuda: set pipeline to torch or onnx"),
        (
            [POOL | {"pipeline": "ai100"}],
            "ai100, which does not run on cpu: set pipeline to onnx or torch or simulated",
        ),
        (
            [POOL | {"name": "a", "model": "one"}, POOL | {"name": "b", "model": "other"}],
            "jobs that name no model get presswork-mini, which no worker pool serves: set model to one of one, other",
        ),
    ],
)
def test_what_does_not_fit_is_refused(workers: list[dict[str, Any]], sentence: str, tmp_path: Path) -> None:
    done = helm(["template", "try"], {"secret": "s", "workers": workers}, tmp_path)
    assert done.returncode != 0
    assert sentence in re.sub(r"\s+", " ", done.stderr)
