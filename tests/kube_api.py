"""A Kubernetes API server as far as Helm asks one for what a chart looks up: its version, its kinds, single objects.

It creates nothing: whatever Helm tries to create is refused, and noted.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Objects = dict[tuple[str, str], dict[str, Any]]  # by plural and name
KINDS = {
    "v1": ("Secret", "ServiceAccount", "Service"),
    "apps/v1": ("Deployment", "StatefulSet"),
    "batch/v1": ("Job",),
    "policy/v1": ("PodDisruptionBudget",),
    "networking.k8s.io/v1": ("NetworkPolicy", "Ingress"),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
}
KEDA = {"keda.sh/v1alpha1": ("ScaledObject", "TriggerAuthentication")}
_PLURALS = {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}


class Cluster(ThreadingHTTPServer):
    """Has these objects in every namespace, and these kinds by API version."""

    daemon_threads = True

    def __init__(self, objects: Objects, kinds: Mapping[str, Sequence[str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.kinds = objects, kinds
        self.created: list[str] = []

    def answer(self, path: str) -> dict[str, Any] | None:
        parts = path.strip("/").split("/")
        match parts:
            case ["version"]:
                return {"major": "1", "minor": "35", "gitVersion": "v1.35.2"}
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [_group(name) for name in self.kinds if "/" in name],
                }
            case ["api" | "apis", *version] if (name := "/".join(version)) in self.kinds:
                return _resources(name, self.kinds[name])
            case ["api", "v1", "namespaces", _, plural, name]:
                return self.objects.get((plural, name))
        return None


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        found = self.server.answer(self.path.partition("?")[0])
        self._send(200, found) if found is not None else self._send(404, _status(404, "NotFound"))

    def do_POST(self) -> None:
        self.server.created.append(self.path)
        self._send(403, _status(403, "Forbidden"))

    def _send(self, code: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def cluster(
    folder: Path, objects: Objects, more: Mapping[str, Sequence[str]] | None = None
) -> Iterator[tuple[Cluster, str]]:
    """The cluster, and a kubeconfig that leads to it."""
    server = Cluster({("serviceaccounts", "default"): service_account(), **objects}, {**KINDS, **(more or {})})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config = folder / "kubeconfig"
    place = {"server": f"http://127.0.0.1:{server.server_address[1]}"}
    context = {"cluster": "it", "user": "me"}
    named = {"clusters": ("cluster", place), "users": ("user", {}), "contexts": ("context", context)}
    names = {"clusters": "it", "users": "me", "contexts": "here"}
    whole = {kind: [{"name": names[kind], key: value}] for kind, (key, value) in named.items()}
    config.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "here", **whole}))
    try:
        yield server, str(config)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def service_account() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}


def secret(*keys: str) -> dict[str, Any]:
    data = dict.fromkeys(keys, "bGV0dGVycw==")
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "any"}, "data": data}


def _group(name: str) -> dict[str, Any]:
    group, _, version = name.partition("/")
    versions = [{"groupVersion": name, "version": version}]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def _resources(version: str, kinds: Sequence[str]) -> dict[str, Any]:
    listed = [
        {"name": _PLURALS.get(kind, f"{kind.lower()}s"), "singularName": "", "namespaced": True, "kind": kind,
         "verbs": ["get", "list", "create"]}
        for kind in kinds
    ]  # fmt: skip
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}


def _status(code: int, reason: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
