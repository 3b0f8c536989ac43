"""The chart's pods as containers of one engine, where there is no cluster: what Helm renders decides all of it.

Image, command, arguments, variables, user, group, volumes, limits and probes are the pod's; a read-only root, dropped
capabilities and the engine's default seccomp profile are asserted, not only asked for. A pod has one network address,
which the Service's name leads to. Network policies, placement and restarts are a cluster's own and not shown here.
"""

import base64
import json
import os
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.waiting import until

RUN_ARGS = shlex.split(os.environ.get("RUN_ARGS", ""))
MEMORY = Path("/dev/shm/presswork-pods")  # volumes that are memory; removed with the release
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_CONFINED = (
    "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/1/status; if (: > /written) 2>/dev/null; then echo WRITABLE; fi"
)


def bytes_of(amount: str) -> int:
    """Bytes of a quantity such as 512Mi."""
    return int(amount[:-2]) * _UNITS[amount[-2:]]


class Pod:
    """One pod of a template: its init containers run one after the other, then its one container."""

    def __init__(
        self,
        engine: str,
        network: str,
        name: str,
        template: Mapping[str, Any],
        secrets: Mapping[str, Mapping[str, str]],
        folder: Path,
        *,
        alias: str,
        publish: int | None = None,
    ) -> None:
        self.engine, self.name = engine, name
        self.alias, self._network, self._publish = alias, network, publish
        self.spec: dict[str, Any] = template["spec"]
        [self.container] = self.spec["containers"]
        self._secrets = secrets
        self._volumes = {volume["name"]: self._volume(volume, folder) for volume in self.spec.get("volumes", [])}

    def claim(self, name: str, folder: Path) -> None:
        """A volume of a claim template: it outlives the pod, and belongs to the pod's group."""
        self._volumes[name] = self._folder(folder / name, 0o2775)

    def prepare(self) -> None:
        """The init containers. Raises AssertionError, with its log, when one fails."""
        for container in self.spec.get("initContainers", []):
            done = self._engine(
                "run", "--rm", *self._options(container, f"{self.name}-{container['name']}"), check=False
            )
            assert done.returncode == 0, (
                f"{container['name']} of {self.name} ended with {done.returncode}: {done.stderr}"
            )

    def start(self) -> None:
        """The container, in the background."""
        published = [] if self._publish is None else [f"--publish=127.0.0.1:{self._publish}:{self._port(None)}"]
        self._engine(
            "run", "--detach", f"--network-alias={self.alias}", *published, *self._options(self.container, self.name)
        )

    def wait_started(self) -> float:
        """Returns how many seconds the startup probe took; it may take as long as it says."""
        probe, began = self.container["startupProbe"], time.monotonic()
        for _ in range(probe["failureThreshold"]):
            if self.passes("startupProbe"):
                return time.monotonic() - began
            time.sleep(probe["periodSeconds"])
        raise AssertionError(f"{self.name} did not start: {self.log()}")

    def passes(self, kind: str) -> bool:
        """Runs a probe once, within its time."""
        probe = self.container[kind]
        seconds = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            command = [self.engine, "exec", self.name, *probe["exec"]["command"]]
            try:
                done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                return False
            return done.returncode == 0
        asked = probe["httpGet"]
        try:
            address = f"http://{self.address}:{self._port(asked['port'])}{asked['path']}"
            with urllib.request.urlopen(address, timeout=seconds) as answer:
                return bool(200 <= answer.status < 400)
        except (OSError, urllib.error.URLError):
            return False

    def run_to_its_end(self) -> tuple[int, str]:
        """The container in the foreground, as of a Job: its exit code and its log."""
        done = self._engine("run", "--rm", *self._options(self.container, self.name), check=False)
        return done.returncode, done.stdout + done.stderr

    def run_in(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._engine("exec", self.name, *command, check=check)

    def stop(self) -> tuple[int, float]:
        """As a cluster ends a pod. Returns its exit code and how many seconds it took; 137 if it was killed."""
        began = time.monotonic()
        if (hook := self.container.get("lifecycle", {}).get("preStop")) is not None:
            self.run_in(*hook["exec"]["command"])
        left = self.spec.get("terminationGracePeriodSeconds", 30) - (time.monotonic() - began)
        self._engine("stop", "--time", str(max(1, round(left))), self.name)
        code = int(self.inspect()["State"]["ExitCode"])
        self._engine("rm", self.name)
        return code, time.monotonic() - began

    def remove(self) -> None:
        self._engine("rm", "--force", "--time", "5", self.name, check=False)

    def assert_confined(self) -> None:
        """It runs as it was first started, as the user and within the limits that the chart gives it."""
        found, rights = self.inspect(), self._rights
        assert found["State"]["Status"] == "running" and found["RestartCount"] == 0, f"{self.name}: {found['State']}"
        said = self.run_in("sh", "-c", _CONFINED).stdout.split()
        assert said == ["CapEff:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"], f"{self.name}: {said}"
        assert self.run_in("id", "-u").stdout.strip() == str(rights["runAsUser"])
        assert found["HostConfig"]["Memory"] == bytes_of(self.container["resources"]["limits"]["memory"])
        for mount in self.container.get("volumeMounts", []):
            file = f"{mount['mountPath']}/.written"
            done = self.run_in("sh", "-c", f": > {file} && rm {file}", check=False)
            assert (done.returncode == 0) == (not mount.get("readOnly")), f"{self.name}: {mount} {done.stderr}"

    def log(self, lines: int = 40) -> str:
        done = self._engine("logs", "--tail", str(lines), self.name, check=False)
        return done.stdout + done.stderr

    def inspect(self) -> dict[str, Any]:
        [found] = json.loads(self._engine("inspect", self.name).stdout)
        return dict(found)

    @property
    def address(self) -> str:
        return str(self.inspect()["NetworkSettings"]["Networks"][self._network]["IPAddress"])

    @property
    def _rights(self) -> dict[str, Any]:
        return dict(self.spec["securityContext"])

    def _port(self, name: str | int | None) -> int:
        """A port of the container by its name; the first one without it."""
        ports = {port["name"]: int(port["containerPort"]) for port in self.container["ports"]}
        return ports[name] if name in ports else int(name or next(iter(ports.values())))

    def _options(self, container: Mapping[str, Any], name: str) -> list[str]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
        words = [
            *RUN_ARGS, f"--name={name}", f"--network={self._network}", "--read-only", "--read-only-tmpfs=false",
            f"--user={self._rights['runAsUser']}:{self._rights['runAsGroup']}",
            f"--group-add={self._rights['fsGroup']}",
            *(f"--cap-drop={one}" for one in rights["capabilities"]["drop"]), "--security-opt=no-new-privileges",
            f"--memory={bytes_of(container['resources']['limits']['memory'])}",
            *(f"--env={one['name']}={self._value(one)}" for one in container.get("env", [])),
        ]  # fmt: skip
        for mount in container.get("volumeMounts", []):
            way = "ro" if mount.get("readOnly") else "rw"
            words.append(f"--volume={self._volumes[mount['name']]}:{mount['mountPath']}:{way}")
        program, *rest = [*container.get("command", []), *container.get("args", [])] if "command" in container else [""]
        words += [f"--entrypoint={program}"] if program else []
        return [*words, container["image"], *(rest or container.get("args", []))]

    def _value(self, variable: Mapping[str, Any]) -> str:
        if "value" in variable:
            return str(variable["value"])
        wanted = variable["valueFrom"]["secretKeyRef"]
        return self._secrets[wanted["name"]][wanted["key"]]

    def _volume(self, volume: Mapping[str, Any], folder: Path) -> Path:
        in_memory = volume["emptyDir"].get("medium") == "Memory"
        return self._folder((MEMORY if in_memory else folder) / self.name / volume["name"], 0o2777)

    def _folder(self, path: Path, mode: int) -> Path:
        """As kubelet gives a volume to a pod with an fsGroup: root's, and the group's."""
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, 0, self._rights["fsGroup"])
        path.chmod(mode)
        return path

    def _engine(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([self.engine, *words], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{words[0]} {self.name}: {done.stderr}"
        return done


def secrets_of(documents: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The Secrets' texts by name and key."""
    return {
        one["metadata"]["name"]: dict(one.get("stringData", {}))
        | {key: base64.b64decode(value).decode() for key, value in one.get("data", {}).items()}
        for one in documents
        if one["kind"] == "Secret"
    }


def wait_for(pods: list[Pod], seconds: float) -> None:
    """Until every readiness probe passes."""
    for pod in pods:
        if "readinessProbe" in pod.container:
            until(lambda pod=pod: pod.passes("readinessProbe"), seconds, 0.5)  # type: ignore[misc]
