"""The Helm chart: `helm lint` and `helm template` accept it, and what they render is confined and complete.

Without Helm all of this is skipped.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.core.model.pipelines import PIPELINES
from services.core.monitoring import alerts, dashboard
from services.core.settings import Settings
from tests.charts import CHART, HELM, MODELS, OTHERS, POOL, SCALED, SCHEMAS, helm, kinds, misfits, pods, render

pytestmark = pytest.mark.skipif(HELM is None, reason="HELM IS MISSING: the chart is not tested")

FULL: dict[str, Any] = {
    "secret": "presswork",
    "pullSecrets": ["registry"],
    "web": {"autoscaling": {"enabled": True}},
    "ingress": {
        "enabled": True,
        "host": "a.example",
        "className": "nginx",
        "tlsSecret": "tls",
        "annotations": {"a": "b"},
    },
    "networkPolicy": {"webFrom": [{"podSelector": {}}], "egress": [{"ports": [{"port": 5432}]}]},
    "serviceMonitor": {"enabled": True},
    "autoscaling": {"keySecret": "presswork-backlog"},
    "workers": [
        POOL,
        SCALED | {"name": "scaled"},
        POOL
        | {
            "name": "gpu",
            "pipeline": "torch",
            "device": "cuda",
            "modelDir": "/models/a",
            "modelsClaim": "models",
            "artefactsClaim": "artefacts",
            "sizes": "512x512",
            "nodeSelector": {"accelerator": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "devices": 2,
            "resources": {"limits": {"memory": "32Gi", "nvidia.com/gpu": 2}},
        },
    ],
}
CASES: dict[str, dict[str, Any]] = {
    "least": {"secret": "presswork"},
    "full": FULL,
    "none": {"secret": "s", "workers": []},
    "embedded": {"embedded": {"enabled": True, "storageClass": "fast"}},
}


@pytest.mark.parametrize("case", CASES)
def test_helm_lints_the_chart(case: str, tmp_path: Path) -> None:
    done = helm(["lint", "--strict"], CASES[case], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason="KUBERNETES' SCHEMAS ARE MISSING: documents are not compared with them"
)
@pytest.mark.parametrize("case", CASES)
def test_each_document_fits_the_schema_of_kubernetes(case: str, tmp_path: Path) -> None:
    file = tmp_path / "documents.yaml"
    documents = render(CASES[case], tmp_path)
    known = [document for document in documents if document["kind"] not in OTHERS]
    file.write_text(yaml.safe_dump_all(known))
    program = """if True:
        import sys, yaml, kubernetes_validate
        for document in yaml.safe_load_all(open(sys.argv[1])):
            kubernetes_validate.validate(document, "1.35", strict=True)
    """
    environ = os.environ | {"PYTHONPATH": str(SCHEMAS)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(
    not MODELS.is_dir(), reason="THE SCHEMAS OF KEDA AND PROMETHEUS ARE MISSING: documents are not compared with them"
)
def test_each_document_fits_the_schema_of_the_project_whose_it_is(tmp_path: Path) -> None:
    found = [document for document in render(FULL, tmp_path) if document["kind"] in OTHERS]
    assert {"ScaledObject", "TriggerAuthentication", "ServiceMonitor"} <= kinds(found).keys()
    assert misfits(found) == []
    [scaled] = kinds(found)["ScaledObject"].values()
    scaled["spec"] |= {"cooldown": 1, "pollingInterval": "often"}
    name = "ScaledObject try-worker-scaled: "
    assert misfits(found) == [
        f'{name}/spec/pollingInterval type {{"type":"integer"}}', f"{name}/spec/cooldown is unknown"
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_container_is_confined_and_probed(case: str, tmp_path: Path) -> None:
    for name, pod in pods(render(CASES[case], tmp_path)).items():
        user = {"try-postgres": 999, "try-redis": 999, "try-s3": 1000}.get(name, 10001)
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"], name
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted - {"data"} == {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert name.endswith("-migrate") or {"startupProbe", "livenessProbe"} <= container.keys(), name


def test_every_variable_is_a_setting(tmp_path: Path) -> None:
    known = {field.metadata["variable"] for field in dataclasses.fields(Settings)} | {"TMPDIR"}
    for name, pod in pods(render(FULL, tmp_path)).items():
        variables = {entry["name"] for container in pod["containers"] for entry in container["env"]}
        assert variables <= known, (name, variables - known)
        assert {"DATABASE_URL", "REDIS_URL"} <= variables


def test_settings_are_those_of_every_program_and_only_such_as_the_chart_does_not_set(tmp_path: Path) -> None:
    given = {"PRESSWORK_PROMPT_POLICIES": "ours", "PRESSWORK_EVENT_DAYS": "30"}
    for name, pod in pods(render(FULL | {"settings": given}, tmp_path)).items():
        entries = [(entry["name"], entry.get("value")) for entry in pod["containers"][0]["env"]]
        assert set(given.items()) <= set(entries) or name.endswith("-migrate")
        assert len({variable for variable, _ in entries}) == len(entries), name
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())["properties"]["settings"]["propertyNames"]
    variables = Settings.variables()
    known = [name for name in variables if re.search(schema["pattern"], name)]
    assert len(known) == schema["pattern"].count("|") + 1, "a name of no setting"
    assert not any(variables[name] for name in known), "a secret"


def test_a_secret_is_only_referred_to_and_each_program_has_its_own_role(tmp_path: Path) -> None:
    for name, pod in pods(render(FULL, tmp_path)).items():
        entries = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        role = {"migrate": "migrator"}.get(name.split("-")[1], name.split("-")[1])
        assert entries["DATABASE_URL"]["valueFrom"]["secretKeyRef"]["key"] == f"{role}-database-url"
        for variable in entries.keys() & {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PRESSWORK_SECRET"}:
            assert "valueFrom" in entries[variable]


def test_a_worker_has_longer_than_its_longest_batch(tmp_path: Path) -> None:
    found = pods(render(FULL, tmp_path))
    for pool in FULL["workers"]:
        grace = found[f"try-worker-{pool['name']}"]["terminationGracePeriodSeconds"]
        assert grace == pool["graceSeconds"] > pool["longestBatchSeconds"]


def test_every_part_may_be_disrupted_one_pod_at_a_time_and_is_reached_by_nobody_but_web(tmp_path: Path) -> None:
    found = kinds(render({"secret": "s"}, tmp_path))
    assert found["PodDisruptionBudget"].keys() == found["Deployment"].keys() == found["NetworkPolicy"].keys()
    for name, policy in found["NetworkPolicy"].items():
        selected = policy["spec"]["podSelector"]["matchLabels"]
        assert selected == found["Deployment"][name]["spec"]["selector"]["matchLabels"]
        assert ("ingress" in policy["spec"]) == (name == "try-web")
        budget = found["PodDisruptionBudget"][name]["spec"]
        assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": selected}}


@pytest.mark.parametrize("case", CASES)
def test_each_service_and_policy_lets_in_at_ports_that_its_pods_listen_on(case: str, tmp_path: Path) -> None:
    documents = render(CASES[case], tmp_path)
    found = kinds(documents)
    templates = [
        one["spec"]["template"] for kind in ("Deployment", "StatefulSet") for one in found.get(kind, {}).values()
    ]

    def listening(labels: dict[str, str]) -> set[str]:
        chosen = [one for one in templates if labels.items() <= one["metadata"]["labels"].items()]
        return {port["name"] for one in chosen for port in one["spec"]["containers"][0].get("ports", [])}

    for service in found["Service"].values():
        named = {port["targetPort"] for port in service["spec"]["ports"]}
        assert named <= listening(service["spec"]["selector"])
    for policy in found["NetworkPolicy"].values():
        rules = policy["spec"].get("ingress", [])
        named = {port["port"] for rule in rules for port in rule["ports"]}
        assert named <= listening(policy["spec"]["podSelector"]["matchLabels"]), policy["metadata"]["name"]
    web = found["NetworkPolicy"]["try-web"]["spec"]
    assert {port["port"] for rule in web["ingress"] for port in rule["ports"]} == {"http"}


@pytest.mark.parametrize("case", CASES)
def test_the_migration_is_tried_once_and_its_account_is_there_before_it(case: str, tmp_path: Path) -> None:
    found = kinds(render(CASES[case], tmp_path))
    job, account = found["Job"]["try-migrate"], found["ServiceAccount"]["try-migrate"]
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    hooks = [one["metadata"]["annotations"] for one in (account, job)]
    assert hooks[0]["helm.sh/hook"] == hooks[1]["helm.sh/hook"]
    before, after = (int(one.get("helm.sh/hook-weight", "0")) for one in hooks)
    assert before < after


def test_the_schema_knows_the_pipelines() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["workers"]["items"]["properties"]["pipeline"]["enum"]) == set(PIPELINES)


def _without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in POOL.items() if name not in names}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"secret": "s", "ingress": {"enabled": True, "host": "https://press.example"}}, "/ingress/host"),
        ({}, "secret is empty: create a Secret"),
        ({"secret": "s", "workers": [POOL | {"modelDir": ""}]}, "the worker pool cpu has no model: set modelDir"),
        ({"secret": "s", "workers": [POOL, POOL]}, "two worker pools are named cpu"),
        ({"secret": "s", "workers": [POOL | {"graceSeconds": 90}]}, "must exceed longestBatchSeconds 90"),
        ({"secret": "s", "ingress": {"enabled": True}}, "set ingress.host"),
        (
            {"secret": "s", "web": {"autoscaling": {"enabled": True, "minReplicas": 9}}},
            "minReplicas 9 above maxReplicas 6",
        ),
        ({"secret": "s", "workers": [POOL | {"pipeline": "tpu"}]}, "pipeline"),
        ({"secret": "s", "wokers": []}, "wokers"),
        ({"secret": "s", "settings": {"PRESSWORK_SECRET": "x"}}, "PRESSWORK_SECRET"),
        ({"secret": "s", "settings": {"PRESSWORK_EVENT_DAYS": 30}}, "PRESSWORK_EVENT_DAYS"),
        ({"secret": "s", "workers": [_without("replicas")]}, "has neither replicas nor autoscaling"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    done = helm(["template", "try"], values, tmp_path)
    assert done.returncode != 0
    assert sentence in re.sub(r"\s+", " ", done.stderr)


def test_where_monitors_are_wanted_schedulers_and_workers_show_their_metrics_and_are_reached(tmp_path: Path) -> None:
    documents = render(FULL, tmp_path)
    found = _by_kind(documents)
    shown = {name: pod["containers"][0] for name, pod in pods(documents).items() if "web" not in name}
    for name, container in shown.items():
        environ = {entry["name"]: entry.get("value") for entry in container["env"]}
        has_port = environ.get("PRESSWORK_METRICS_PORT") == "9420" and environ["PRESSWORK_METRICS_HOST"] == "0.0.0.0"
        assert has_port == (not name.endswith("-migrate"))
    (monitor,) = found["PodMonitor"].values()
    ports = ["metrics", "metrics-1"]  # the largest pod has two devices
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ports
    [rule] = found["NetworkPolicy"]["try-metrics"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": port, "protocol": "TCP"} for port in ports] and "from" not in rule
    (alerting,) = found["PrometheusRule"].values()
    assert alerting["spec"] == alerts.rules()
    assert json.loads(found["ConfigMap"]["try-dashboard"]["data"]["presswork.json"]) == dashboard.dashboard()
    without = render({"secret": "s"}, tmp_path)
    assert not {"PodMonitor", "PrometheusRule", "ConfigMap"} & _by_kind(without).keys()
    assert "PRESSWORK_METRICS_PORT" not in json.dumps(without)


def test_prometheus_finds_the_monitors_by_its_label_and_reaches_web_where_that_is_narrowed(tmp_path: Path) -> None:
    monitors = {"enabled": True, "labels": {"release": "kps"}, "prometheusNamespace": "watch"}
    narrow = {"webFrom": [{"podSelector": {}}]}
    found = kinds(render({"secret": "s", "serviceMonitor": monitors, "networkPolicy": narrow}, tmp_path))
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"):
        [document] = found[kind].values()
        assert document["metadata"]["labels"]["release"] == "kps", kind
    [rule] = found["NetworkPolicy"]["try-web"]["spec"]["ingress"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "watch"}}} in rule["from"]
    without = kinds(render({"secret": "s", "networkPolicy": narrow}, tmp_path))
    assert without["NetworkPolicy"]["try-web"]["spec"]["ingress"][0]["from"] == narrow["webFrom"]


def _by_kind(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for document in documents:
        found.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    return found
