"""The chart's own servers for a try-out: those of compose.yaml, confined alike, with secrets that the chart makes."""

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from services.core.settings import Settings
from tests.charts import CHART, HELM, ROOT, SHIPPED, helm, kinds, pods, render

pytestmark = pytest.mark.skipif(HELM is None, reason="HELM IS MISSING: the chart is not tested")

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
SERVERS = ("postgres", "redis", "s3")
TRYOUT: dict[str, Any] = {"embedded": {"enabled": True}}


@pytest.fixture
def documents(tmp_path: Path) -> list[dict[str, Any]]:
    return render(TRYOUT, tmp_path)


def server(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    [container] = pods(documents)[f"try-{name}"]["containers"]
    return container


def test_they_are_the_servers_of_compose(documents: list[dict[str, Any]]) -> None:
    for name in SERVERS:
        ours, theirs = server(documents, name), COMPOSE[name]
        assert ours["image"] == theirs["image"]
        pod = pods(documents)[f"try-{name}"]
        assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == theirs["user"]
        [data] = [mount["mountPath"] for mount in ours["volumeMounts"] if mount["name"] == "data"]
        assert theirs["volumes"] == [f"{name}:{data}"]
        given = {entry["name"] for entry in ours["env"]}
        assert given == set(theirs["environment"])
        writable = {mount["mountPath"] for mount in ours["volumeMounts"]}
        assert {path.partition(":")[0] for path in theirs["tmpfs"]} <= writable
    assert server(documents, "postgres")["args"] == COMPOSE["postgres"]["command"]


@pytest.mark.parametrize("name", ["redis", "s3", "roles"])
def test_their_scripts_are_those_of_compose(name: str, documents: list[dict[str, Any]]) -> None:
    """What those do is tested with compose.yaml."""
    script = COMPOSE[name]["command"][-1].replace("$$", "$")
    if name == "roles":
        [container] = pods(documents)["try-migrate"]["initContainers"]
        assert container["image"] == COMPOSE[name]["image"]
        assert container["command"] == ["sh", "-ec", f"until pg_isready -q -t 5; do sleep 1; done\n{script}"]
        named = set(re.findall(r"getenv \w+ (\w+)", script)) | {"PGHOST", "PGUSER", "PGPASSWORD", "PGDATABASE"}
        assert named <= {entry["name"] for entry in container["env"]}
    else:
        assert server(documents, name)["command"] == ["sh", "-ec", script]


def test_one_secret_fits_all(documents: list[dict[str, Any]]) -> None:
    """Every reference finds its key, and the addresses hold the passwords that the servers are given."""
    [secret] = kinds(documents)["Secret"].values()
    keys = secret["stringData"]
    referred = set(re.findall(r"'secretKeyRef': {'name': '([^']+)', 'key': '([^']+)'}", str(documents)))
    assert {name for name, _ in referred} == {secret["metadata"]["name"]} == {"try-embedded"}
    assert {key for _, key in referred} <= keys.keys()
    services = kinds(documents)["Service"]
    for kind, name in (("database", "try-postgres"), ("redis", "try-redis")):
        for role in ("web", "scheduler", "worker"):
            address = urlsplit(keys[f"{role}-{kind}-url"])
            assert (address.username, address.hostname) == (f"presswork_{role}", name)
            assert name in services
            assert address.password == keys[f"{role if kind == 'database' else f'redis-{role}'}-password"]
    assert urlsplit(keys["migrator-database-url"]).password == keys["migrator-password"]
    assert len(set(keys.values())) == len(keys) and min(map(len, keys.values())) >= 20
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    web = {entry["name"]: entry.get("value") for entry in pods(documents)["try-web"]["containers"][0]["env"]}
    assert web["AWS_ENDPOINT_URL"] == "http://try-s3:8333" and "try-s3" in services
    assert web["PRESSWORK_PUBLIC_S3_URL"] == "http://127.0.0.1:8333"


def test_the_migration_comes_after_the_servers_and_the_programs_after_the_migration(
    documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    def hook(found: list[dict[str, Any]]) -> str:
        return str(kinds(found)["Job"]["try-migrate"]["metadata"]["annotations"]["helm.sh/hook"])

    assert hook(documents) == "post-install,pre-upgrade"
    for name in ("try-web", "try-scheduler", "try-worker-cpu"):
        [waits] = pods(documents)[name]["initContainers"]
        assert waits["command"] == ["presswork", "migrate", "--wait", str(SHIPPED["migrate"]["deadlineSeconds"])]
        given = {entry["name"]: entry.get("value", "redis://set") for entry in waits["env"]}
        Settings.read(given | {"DATABASE_URL": "postgresql://set"})
    elsewhere = render({"secret": "s"}, tmp_path)
    assert hook(elsewhere) == "pre-install,pre-upgrade"
    assert not any("initContainers" in pod for pod in pods(elsewhere).values())


def test_only_our_own_programs_reach_them(documents: list[dict[str, Any]]) -> None:
    found = kinds(documents)
    for name in SERVERS:
        policy = found["NetworkPolicy"][f"try-{name}"]["spec"]
        labels = found["StatefulSet"][f"try-{name}"]["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        [rule] = policy["ingress"]
        [peer] = rule["from"]
        for program in ("try-web", "try-scheduler", "try-worker-cpu"):
            theirs = found["Deployment"][program]["spec"]["template"]["metadata"]["labels"]
            assert peer["podSelector"]["matchLabels"].items() <= theirs.items()
        assert [port["port"] for port in rule["ports"]] == [name]


def test_where_egress_is_listed_the_programs_still_reach_them(tmp_path: Path) -> None:
    asked = [{"ports": [{"port": 53}]}]
    found = kinds(render(TRYOUT | {"networkPolicy": {"egress": asked}}, tmp_path))
    labels = found["StatefulSet"]["try-postgres"]["spec"]["template"]["metadata"]["labels"]
    for program in ("try-web", "try-scheduler", "try-worker-cpu"):
        given, own = found["NetworkPolicy"][program]["spec"]["egress"]
        [peer] = own["to"]
        assert given == asked[0] and peer["podSelector"]["matchLabels"].items() <= labels.items()


def test_an_upgrade_keeps_the_secret(tmp_path: Path) -> None:
    """All of it follows from one text, which the chart reads from the Secret that there is."""
    [one], [other] = (kinds(render(TRYOUT, tmp_path))["Secret"].values() for _ in range(2))
    assert one["stringData"]["secret"] != other["stringData"]["secret"]
    for secret in (one, other):
        keys = secret["stringData"]
        expected = hashlib.sha256(f"{keys['secret']} postgres".encode()).hexdigest()
        assert keys["postgres-password"] == expected


@pytest.mark.parametrize("more", [{"secret": "mine"}, {"s3": {"endpoint": "https://s3.example"}}])
def test_beside_servers_elsewhere_they_are_refused(more: dict[str, Any], tmp_path: Path) -> None:
    done = helm(["template", "try"], TRYOUT | more, tmp_path)
    assert "embedded.enabled brings its own servers and Secret" in done.stderr


def test_the_readme_s_commands_install_the_images_that_they_push(tmp_path: Path) -> None:
    """As they stand in the README, with `helm install` rendering only."""
    [block] = re.findall(r"Ten commands.*?```sh\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    lines = block.replace("\\\n", "").splitlines()
    shim = tmp_path / "helm"
    shim.write_text(f'#!/bin/sh\nset -- $(echo "$*" | sed "s/ install / template /")\nexec {HELM} "$@"\n')
    shim.chmod(0o755)
    (tmp_path / "services").symlink_to(ROOT / "services")
    script = "\n".join(line for line in lines if line.startswith(("printf", "helm")))
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REGISTRY": "registry.example/team"}
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    used = {
        one["image"] for pod in pods(documents).values() for one in [*pod["containers"], *pod.get("initContainers", [])]
    }
    pushed = {found.replace("$REGISTRY", "registry.example/team") for found in re.findall(r"docker push (\S+)", block)}
    assert used == pushed | {SHIPPED["embedded"][name]["image"] for name in SERVERS}
    assert {"deployment/presswork-worker-cpu", "service/presswork-s3"} <= {
        f"{kind.lower()}/{name}" for kind, names in kinds(documents).items() for name in names
    }
