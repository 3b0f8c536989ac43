"""What the chart refuses because of what a cluster has: one sentence at install, and nothing is created."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.charts import HELM, POOL, SCALED, helm, kinds, render
from tests.kube_api import KEDA, Objects, cluster, secret

pytestmark = pytest.mark.skipif(HELM is None, reason="HELM IS MISSING: the chart is not tested")

KEYS = (
    "migrator-database-url", "web-database-url", "web-redis-url", "scheduler-database-url", "scheduler-redis-url",
    "worker-database-url", "worker-redis-url", "s3-access-key", "s3-secret-key", "secret",
)  # fmt: skip
WHOLE: Objects = {("secrets", "presswork"): secret(*KEYS)}
SCALING = {"secret": "presswork", "autoscaling": {"keySecret": "backlog"}, "workers": [SCALED]}


def rendered(values: dict[str, Any], objects: Objects, folder: Path, more: Any = None) -> tuple[int, str]:
    """Helm's exit code, and what it says, of an installation in a cluster with these objects."""
    with cluster(folder, objects, more) as (server, config):
        done = helm(
            ["template", "try", "--dry-run=server", "--disable-openapi-validation", "--kubeconfig", config],
            values,
            folder,
        )
    assert not server.created
    return done.returncode, re.sub(r"\s+", " ", done.stderr)


def test_a_cluster_with_the_secret_is_installed_in(tmp_path: Path) -> None:
    assert rendered({"secret": "presswork"}, WHOLE, tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("values", "objects", "sentence"),
    [
        ({"secret": "presswork"}, {}, "there is no Secret presswork in the namespace default: create it first"),
        *(
            (
                {"secret": "presswork"},
                {("secrets", "presswork"): secret(*(key for key in KEYS if key != missing))},
                f"the Secret presswork has no key {missing}: add it",
            )
            for missing in KEYS
        ),
        (
            {"secret": "presswork", "serviceMonitor": {"enabled": True}},
            WHOLE,
            "serviceMonitor is enabled, and the cluster has no Prometheus operator: install it",
        ),
        (SCALING, WHOLE, "the worker pool cpu has autoscaling, and the cluster has no KEDA"),
    ],
)
def test_what_a_cluster_lacks_is_said_in_one_sentence(
    values: dict[str, Any], objects: Objects, sentence: str, tmp_path: Path
) -> None:
    code, said = rendered(values, objects, tmp_path)
    assert code != 0 and sentence in said


def test_a_pool_that_is_scaled_needs_keda_and_a_key(tmp_path: Path) -> None:
    code, said = rendered(SCALING, WHOLE, tmp_path, KEDA)
    assert code != 0 and "there is no Secret backlog with the field key" in said
    code, said = rendered(SCALING, WHOLE | {("secrets", "backlog"): secret("token")}, tmp_path, KEDA)
    assert code != 0 and "there is no Secret backlog with the field key" in said
    assert rendered(SCALING, WHOLE | {("secrets", "backlog"): secret("key")}, tmp_path, KEDA) == (0, "")


@pytest.mark.parametrize("values", [{"secret": "s"}, {"embedded": {"enabled": True}}])
def test_a_migration_that_fails_stops_the_release_once_and_its_sentence_stays(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """A schema that is ahead is one sentence of `presswork migrate`: tests/integration/test_upgrades.py."""
    job = kinds(render(values, tmp_path))["Job"]["try-migrate"]
    pod = job["spec"]["template"]["spec"]
    assert (job["spec"]["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert {one["terminationMessagePolicy"] for one in pod["containers"]} == {"FallbackToLogsOnError"}
    assert "pre-upgrade" in job["metadata"]["annotations"]["helm.sh/hook"]
    assert "hook-failed" not in job["metadata"]["annotations"]["helm.sh/hook-delete-policy"]


def test_the_embedded_servers_keep_what_their_secret_was_made_of(tmp_path: Path) -> None:
    release = {"meta.helm.sh/release-name": "try", "meta.helm.sh/release-namespace": "default"}
    owned = {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": release}
    kept = {("secrets", "try-embedded"): secret("secret") | {"metadata": {"name": "try-embedded", **owned}}}
    values = {"embedded": {"enabled": True}, "workers": [POOL]}
    with cluster(tmp_path, kept) as (_, config):
        done = helm(
            ["template", "try", "--dry-run=server", "--disable-openapi-validation", "--kubeconfig", config],
            values,
            tmp_path,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert 'secret: "letters"' in done.stdout
