"""The chart as Helm renders it, and the schemas that its documents must fit.

Helm is on the PATH or in .helm (.ci/run puts it there, with the schemas of Kubernetes, KEDA and Prometheus' operator).
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "services/chart"
HELM = shutil.which("helm", path=f"{os.environ['PATH']}:{ROOT / '.helm/helm'}")
SCHEMAS = ROOT / ".helm/schemas"
MODELS = ROOT / ".helm/models"
OTHERS = (
    "ScaledObject",
    "TriggerAuthentication",
    "ServiceMonitor",
    "PodMonitor",
    "PrometheusRule",
)  # of KEDA, Prometheus
SHIPPED: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
POOL: dict[str, Any] = SHIPPED["workers"][0]
SCALED = {name: value for name, value in POOL.items() if name != "replicas"} | {
    "model": "presswork-mini",
    "autoscaling": {"maxReplicas": 4},
}


def helm(action: list[str], values: dict[str, Any], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """What Helm says of the chart with these values."""
    assert HELM
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [HELM, *action, str(CHART), "--values", str(file)]
    return subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False)


def render(values: dict[str, Any], folder: Path, *options: str) -> list[dict[str, Any]]:
    done = helm(["template", "try", *options], values, folder)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def kinds(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The documents by kind and name."""
    found: dict[str, dict[str, Any]] = {}
    for document in documents:
        found.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    return found


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pods' specifications by the name of what makes them."""
    made = [document for document in documents if document["kind"] in ("Deployment", "StatefulSet", "Job")]
    return {document["metadata"]["name"]: document["spec"]["template"]["spec"] for document in made}


def misfits(documents: list[dict[str, Any]]) -> list[str]:
    """What does not fit the schemas of the projects whose kinds these are, a sentence each. A field that they do not
    name is an error."""
    command = ["node", str(ROOT / "tests/resources.mjs"), str(MODELS)]
    done = subprocess.run(command, input=json.dumps(documents), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
