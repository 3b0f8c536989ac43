"""Presswork as `pip install` leaves it: with some extras, and in a folder whose names are ours too."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from services.cli import __main__ as entry
from services.cli.app import app
from services.core import extras
from services.core.model.pipelines import PIPELINES
from tests.processes import PRESSWORK, project_of_another

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
COMMANDS = sorted(typer.main.get_command(app).commands)
OURS = ("services", "worker", "scheduler", "migrations")


def test_every_file_that_a_program_reads_is_in_the_distribution() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    kept = {path for package, globs in declared.items() for glob in globs
            for path in (ROOT / package.replace(".", "/")).glob(glob)}  # fmt: skip
    read = {
        path
        for name in OURS
        for kind in ("css", "jsonl", "sql", "html", "js", "svg")
        for path in (ROOT / name).rglob(f"*.{kind}")
    }
    assert read <= kept


class Installation:
    """An environment that holds presswork, the extras, and what these need; linked from the one that tests run in."""

    def __init__(self, folder: Path, *chosen: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        [site] = folder.glob("lib/python*/site-packages")
        for name in OURS:
            (site / name).symlink_to(ROOT / name)
        for name in closure(*chosen):
            for path in metadata.distribution(name).files or []:
                top = path.parts[0]
                source = Path(str(metadata.distribution(name).locate_file(top)))
                if top not in ("..", "__pycache__") and not top.startswith("__editable__") and source.exists():
                    target = site / top
                    if not target.is_symlink():
                        target.symlink_to(source)
        if "presswork-client" in closure(*chosen):
            (site / "presswork_client").symlink_to(ROOT / "services" / "client" / "presswork_client")

    def presswork(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [self.python, "-P", "-m", "services.cli", *words]
        return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=60)


def closure(*chosen: str) -> set[str]:
    found = {"presswork"}
    waiting = [("presswork", frozenset(chosen))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        for requirement in map(Requirement, metadata.requires(name) or []):
            marks = [{"extra": extra} for extra in wanted | {""}]
            following = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if following not in seen and (not requirement.marker or any(map(requirement.marker.evaluate, marks))):
                seen.add(following)
                waiting.append(following)
                found.add(following[0])
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="module")
def with_cli(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("cli") / "venv", "cli")


def assert_asks_for(done: subprocess.CompletedProcess[str], *wanted: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    said = done.stderr.replace("\n", " ")
    found = re.fullmatch(r"presswork: This command needs the extras? (.*): +pip install 'presswork\[(.*)\]'\. ", said)
    assert found, done.stderr
    assert re.findall("`(.*?)`", found[1]) == found[2].split(",") == list(wanted)


def test_without_extras_the_version_is_said(bare: Installation, tmp_path: Path) -> None:
    done = bare.presswork("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"presswork {metadata.version('presswork')}\n", "")


@pytest.mark.parametrize("command", [*COMMANDS, "--help", ""])
def test_without_extras_every_command_names_those_that_it_needs(
    bare: Installation, tmp_path: Path, command: str
) -> None:
    needs = {
        "up": ["local"], "demo": ["local"], "model": ["cli", "worker"], "bench": ["cli", "worker", "torch"],
        "ai100": ["cli", "worker"],
    }  # fmt: skip
    assert_asks_for(bare.presswork(*command.split(), cwd=tmp_path), *needs.get(command, ["cli"]))


def test_every_command_that_has_needs_of_its_own_is_a_command() -> None:
    assert entry.NEEDS.keys() <= set(COMMANDS)
    wanted = {extra for needs in entry.NEEDS.values() for extra in needs}
    wanted |= {extra for entry in PIPELINES.values() for extra in entry.extras}
    assert wanted <= EXTRAS.keys()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("up --pipeline simulated", ["local"]),
        ("demo --pipeline torch", ["local"]),
        ("model inspect presswork-mini", ["worker"]),
        ("model make new", ["worker", "torch"]),
        ("model verify presswork-mini", ["worker", "torch"]),
        ("bench engine", ["worker", "torch"]),
        ("ai100 export presswork-mini -o exported", ["worker", "onnx"]),
    ],
)
def test_with_the_command_line_alone_what_needs_more_says_so(
    with_cli: Installation, tmp_path: Path, words: str, wanted: list[str]
) -> None:
    assert_asks_for(with_cli.presswork(*words.split(), cwd=tmp_path), *wanted)
    assert list(tmp_path.iterdir()) == []


def test_with_the_command_line_alone_a_remote_server_can_be_used(with_cli: Installation, tmp_path: Path) -> None:
    done = with_cli.presswork("ls", cwd=tmp_path)
    assert done.returncode == 2
    assert "No server is named" in done.stderr
    assert with_cli.presswork("--help", cwd=tmp_path).returncode == 0
    assert with_cli.presswork("status", cwd=tmp_path).returncode == 1


def test_servers_of_the_system_do_instead_of_those_that_wheels_carry() -> None:
    assert {Requirement(line).name for line in EXTRAS["local"]} - {"presswork"} == extras.SERVERS


@pytest.mark.parametrize("name", ["onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-migraphx"])
def test_a_build_of_onnx_runtime_for_another_device_does_instead(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {distribution: metadata.version(distribution) for distribution in closure("onnx") - {"onnxruntime"}}

    def version(distribution: str) -> str:
        if found := there.get(canonicalize_name(distribution)):
            return found
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", version)
    assert extras.lacking("onnx") == ["onnx"]
    there[name] = "1.32.0"
    assert extras.lacking("onnx") == []


@pytest.mark.parametrize("words", ["--version", "status", "model inspect presswork-mini"])
def test_a_folder_with_our_names_is_not_taken_for_ours(tmp_path: Path, words: str) -> None:
    folder = project_of_another(tmp_path / "project")
    done = subprocess.run([PRESSWORK, *words.split()], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if words == "status" else 0), done.stderr
    assert "another project" not in done.stdout + done.stderr


def test_every_process_that_we_start_is_started_by_the_one_function() -> None:
    starts = [
        (path.name, line)
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if "sys.executable" in line
    ]
    assert {name for name, _ in starts} == {"processes.py", "child.py"}
    assert all('"-P"' in line or '"-I"' in line for _, line in starts)


def test_an_interrupt_while_the_modules_load_ends_the_command_without_a_traceback() -> None:
    script = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "services.cli.metadata":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.meta_path.insert(0, Interrupting())
from services.cli.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
