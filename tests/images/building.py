"""Builds the images with the container engine that this machine has. Needs the standard library alone.

Where no registry of images answers, the base image is made from Debian's packages.
"""

import ast
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGES: dict[str, tuple[str, dict[str, str]]] = {  # as compose.yaml names and builds them
    "presswork": ("services/Dockerfile", {}),
    "presswork-worker": ("worker/Dockerfile", {}),
    "presswork-worker-gpu": ("worker/Dockerfile", {"TRITON": "1"}),
    "presswork-worker-ai100": ("worker/Dockerfile", {"AI100_STAND_IN": "1"}),  # for want of an image with the SDK
}
ENGINES = {  # how each one shows that it works, and how it builds
    "docker": (["docker", "info"], ["docker", "build"]),
    "buildah": (["buildah", "info"], ["buildah", "build", "--layers"]),
    "podman": (["podman", "info"], ["podman", "build"]),
}
USUAL_BASE = "python:3.11-slim"
OWN_BASE = "localhost/presswork-base"
ANSWER_SECONDS = 20


def build(names: list[str]) -> None:
    """Builds these images and says how long each took and how large it is."""
    if unknown := [name for name in names if name not in IMAGES]:
        sys.exit(f"There is no image {unknown[0]!r}; there are {', '.join(IMAGES)}.")
    engine = builder()
    base = base_image(engine)
    for name in names:
        dockerfile, arguments = IMAGES[name]
        began = time.monotonic()
        build_image(engine, f"{name}:{VERSION}", dockerfile, ROOT, base=base, **arguments)
        say(f"{name}:{VERSION} built by {engine} in {time.monotonic() - began:.0f} s, {size(engine, name)} MB")


def builder() -> str:
    """The engine that ENGINE names, else the first that works."""
    named = os.environ.get("ENGINE")
    if named and named not in ENGINES:
        sys.exit(f"ENGINE is {named!r}; it can be {', '.join(ENGINES)}.")
    for engine in [named] if named else ENGINES:
        if (
            shutil.which(engine)
            and subprocess.run(ENGINES[engine][0], capture_output=True, check=False).returncode == 0
        ):
            return engine
    sys.exit(
        f"{named} does not work here." if named else
        "No container engine works here: install docker, buildah or podman, or name one in ENGINE."
    )  # fmt: skip


def build_image(engine: str, tag: str, dockerfile: str, context: Path, *options: str, base: str, **args: str) -> None:
    """Builds one image. `args` are the Dockerfile's own; an empty `base` leaves it the one that it names."""
    given = {"BASE": base, "TORCH_INDEX_URL": os.environ.get("TORCH_INDEX_URL", ""), **args}
    stated = [f"--build-arg={name}={value}" for name, value in given.items() if value]
    more = shlex.split(os.environ.get("BUILD_ARGS", ""))
    with pip_settings(engine) as mounts:
        command = [*ENGINES[engine][1], *mounts, *stated, *more, *options, "-f", dockerfile, "-t", tag, str(context)]
        built = subprocess.run(command, cwd=context, check=False)
    if built.returncode:
        sys.exit(f"{tag} was not built: {engine} ended with {built.returncode}.")


def base_image(engine: str) -> str:
    """The base to build on: BASE, or "" for the usual one when it is here or can be had, or one made here."""
    if os.environ.get("BASE"):
        return os.environ["BASE"]
    if obtain(engine, USUAL_BASE):
        return ""
    if not is_here(engine, OWN_BASE):
        say(f"{USUAL_BASE} cannot be had from a registry: a base is made from Debian's packages instead")
        _make_base(engine)
    say(f"built on {OWN_BASE}, made from Debian's packages, in place of {USUAL_BASE}")
    return OWN_BASE


def _make_base(engine: str) -> None:
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        sys.exit(f"There is no base image: no registry gives {USUAL_BASE}, and making one takes root and debootstrap.")
    with tempfile.TemporaryDirectory(prefix="presswork-base-") as folder:
        subprocess.run([HERE / "base.sh", folder], check=True)
        command = [*ENGINES[engine][1], "-t", OWN_BASE, folder]
        subprocess.run(command, check=True)


def obtain(engine: str, image: str) -> bool:
    """Whether the image is here, or came when it was asked for."""
    if is_here(engine, image):
        return True
    try:  # asked for first: a pull tries for minutes where nobody answers
        asked = subprocess.run(
            [engine, "manifest", "inspect", image], capture_output=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return (
        asked.returncode == 0
        and subprocess.run([engine, "pull", image], capture_output=True, check=False).returncode == 0
    )


def is_here(engine: str, image: str) -> bool:
    inspect = [engine, "inspect", "--type=image", image]
    return subprocess.run(inspect, capture_output=True, check=False).returncode == 0


def size(engine: str, name: str) -> int:
    """Megabytes, as the engine counts them."""
    form = "{{.Size}}"
    listed = subprocess.run(
        [engine, "images", "--format", form, f"{name}:{VERSION}"], capture_output=True, text=True, check=True
    )
    number, unit = re.findall(r"([\d.]+)\s*([kMG]?B)", listed.stdout)[0]
    return round(float(number) * {"B": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1000.0}[unit])


@contextlib.contextmanager
def pip_settings(engine: str) -> Iterator[list[str]]:
    """Options that give a build the settings of this machine's pip: one file of them all, and what they name on this
    machine's disk. Docker mounts nothing into a build: there BASE or BUILD_ARGS must bring what pip needs."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings = dict(line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line)
    values = {key.rpartition(".")[2]: ast.literal_eval(value) for key, value in sorted(settings.items(), reverse=True)}
    if engine == "docker" or not values:
        yield []
        return
    places = {place for value in values.values() for place in places_in(value)}
    with tempfile.NamedTemporaryFile("w", prefix="presswork-pip-", suffix=".conf") as file:
        lines = (f"{key} = {value.strip()}".replace("\n", "\n  ") for key, value in values.items())
        file.write("\n".join(["[global]", *lines, ""]))
        file.flush()
        mounts = {file.name: "/etc/pip.conf"} | {place: place for place in sorted(places)}
        yield [f"--volume={here}:{there}:ro" for here, there in mounts.items()]


def places_in(value: str) -> set[str]:
    """The files and folders of this machine that a setting names; of an index the folder above, where its files lie."""
    paths = (Path(word.removeprefix("file://").rstrip("/")) for word in value.split())
    found = {path.parent if path.name == "simple" else path for path in paths if path.is_absolute() and path.exists()}
    return set(map(str, found))


def say(words: str) -> None:
    print(f"images: {words}", flush=True)
