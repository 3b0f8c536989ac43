"""The chart's autoscaling: KEDA scales a pool of workers to zero and back, by what waits for its model."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from services.api.app import create_app
from services.api.v1.fleet import Backlog
from services.core.settings import Settings
from tests.charts import HELM, POOL, SCALED, SHIPPED, helm, kinds, render

pytestmark = pytest.mark.skipif(HELM is None, reason="HELM IS MISSING: the chart is not tested")


def values(**scaling: Any) -> dict[str, Any]:
    pool = SCALED | {"name": "gpu", "autoscaling": {"maxReplicas": 4, **scaling}}
    return {"secret": "s", "autoscaling": {"keySecret": "backlog"}, "workers": [POOL, pool]}


def scaled(folder: Path, **scaling: Any) -> dict[str, Any]:
    found = kinds(render(values(**scaling), folder))["ScaledObject"]
    assert found.keys() == {"try-worker-gpu"}
    spec: dict[str, Any] = found["try-worker-gpu"]["spec"]
    return spec


def test_the_trigger_is_the_backlog_of_the_pools_model_and_is_not_divided_by_the_pods(
    tmp_path: Path, settings: Settings
) -> None:
    spec = scaled(tmp_path, secondsPerImage=2.5, targetSeconds=120)
    [trigger] = spec["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("metrics-api", "AverageValue")
    asked = urlsplit(trigger["metadata"]["url"])
    assert asked.netloc == "try-web.default.svc:8420"
    assert parse_qs(asked.query) == {"model": ["presswork-mini"], "seconds_per_image": ["2.5"]}
    operation = create_app(settings).openapi()["paths"][asked.path]["get"]
    assert {parameter["name"] for parameter in operation["parameters"]} == {"model", "seconds_per_image"}
    assert trigger["metadata"]["valueLocation"] in Backlog.model_fields
    assert (trigger["metadata"]["targetValue"], trigger["metadata"]["activationTargetValue"]) == ("120", "0")


def test_the_trigger_has_a_key_of_its_own(tmp_path: Path) -> None:
    found = kinds(render(values(), tmp_path))
    [trigger] = found["ScaledObject"]["try-worker-gpu"]["spec"]["triggers"]
    assert trigger["metadata"]["authMode"] == "bearer"
    [account] = found["TriggerAuthentication"].values()
    assert account["metadata"]["name"] == trigger["authenticationRef"]["name"]
    assert account["spec"] == {"secretTargetRef": [{"parameter": "token", "name": "backlog", "key": "key"}]}


def test_a_pool_scales_to_zero_and_back_and_waits_longer_than_its_cold_start(tmp_path: Path) -> None:
    spec, shipped = scaled(tmp_path), SHIPPED["autoscaling"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 4)
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    for wait in (down["stabilizationWindowSeconds"], spec["cooldownPeriod"]):
        assert wait > shipped["coldStartSeconds"]
    slow = scaled(tmp_path, coldStartSeconds=900, stabilizationSeconds=960, cooldownSeconds=1200, minReplicas=1)
    assert (
        slow["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 960
    )
    assert (slow["cooldownPeriod"], slow["minReplicaCount"]) == (1200, 1)


def test_the_pools_number_is_the_autoscalers_alone(tmp_path: Path) -> None:
    found = kinds(render(values(), tmp_path))["Deployment"]
    assert "replicas" not in found["try-worker-gpu"]["spec"]
    assert found["try-worker-cpu"]["spec"]["replicas"] == POOL["replicas"]
    target = scaled(tmp_path)["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "try-worker-gpu"}


def test_where_web_is_narrowed_keda_still_reaches_it(tmp_path: Path) -> None:
    narrow = values() | {"networkPolicy": {"webFrom": [{"podSelector": {"matchLabels": {"app": "proxy"}}}]}}
    [rule] = kinds(render(narrow, tmp_path))["NetworkPolicy"]["try-web"]["spec"]["ingress"]
    assert rule["from"] == [
        {"podSelector": {"matchLabels": {"app": "proxy"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}},
    ]
    narrow["workers"] = [POOL]
    [rule] = kinds(render(narrow, tmp_path))["NetworkPolicy"]["try-web"]["spec"]["ingress"]
    assert len(rule["from"]) == 1


@pytest.mark.parametrize(
    ("pool", "more", "sentence"),
    [
        ({"model": ""}, {}, "model"),
        ({"replicas": 1}, {}, "the worker pool gpu has replicas and autoscaling: leave one of them out"),
        ({}, {"autoscaling": {"keySecret": ""}}, "set autoscaling.keySecret to a Secret whose field key is one"),
        ({"autoscaling": {}}, {}, "maxReplicas"),
        ({"autoscaling": {"maxReplicas": 2, "minReplicas": 3}}, {}, "minReplicas 3 above maxReplicas 2"),
        (
            {"autoscaling": {"maxReplicas": 2, "stabilizationSeconds": 300}},
            {},
            "stabilizationSeconds 300, which must exceed coldStartSeconds 300",
        ),
        (
            {"autoscaling": {"maxReplicas": 2, "coldStartSeconds": 310, "cooldownSeconds": 310}},
            {},
            "cooldownSeconds 310, which must exceed coldStartSeconds 310",
        ),
        ({"autoscaling": {"maxReplicas": 2, "polling": 3}}, {}, "polling"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    pool: dict[str, Any], more: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    found = values()
    found["workers"] = [found["workers"][1] | pool]
    done = helm(["template", "try"], found | more, tmp_path)
    assert done.returncode != 0
    assert sentence in re.sub(r"\s+", " ", done.stderr)


def test_a_pool_that_is_scaled_names_its_model(tmp_path: Path) -> None:
    found = values()
    del found["workers"][1]["model"]
    done = helm(["template", "try"], found, tmp_path)
    assert "the worker pool gpu has autoscaling and no model: set model to the name that jobs ask for" in done.stderr
