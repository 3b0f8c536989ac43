"""The chart as Helm renders it, and the schemas that its documents must fit.

Helm is on the PATH or in .helm (.ci/run puts it there, with Kubernetes' schemas).
"""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "services/chart"
HELM = shutil.which("helm", path=f"{os.environ['PATH']}:{ROOT / '.helm/helm'}")
SCHEMAS = ROOT / ".helm/schemas"
CRDS = ROOT / "tests/crds"
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


@cache
def resource_schemas() -> dict[str, dict[str, Any]]:
    """The schemas of KEDA's and Prometheus' resources by kind, in which a field that is not named is an error."""
    found = {}
    for path in CRDS.glob("*.yaml"):
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)
        [version] = definition["spec"]["versions"]
        found[definition["spec"]["names"]["kind"]] = _strict(version["schema"]["openAPIV3Schema"])
    return found


def _strict(schema: Any, *, is_root: bool = True) -> Any:
    if isinstance(schema, list):
        return [_strict(part, is_root=False) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(part, is_root=False) for name, part in schema.items()}
    open_ended = made.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not open_ended:
        made.setdefault("additionalProperties", False)
    if is_root:
        made["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return made
