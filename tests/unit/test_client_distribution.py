"""`presswork-client`: what it needs, what it is called, and that it agrees with the distribution that asks for it."""

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

import presswork_client

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "services" / "client"
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLIENTS = tomllib.loads((FOLDER / "pyproject.toml").read_text())


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def test_the_client_needs_httpx_and_nothing_else() -> None:
    """Functions that read shards import what their caller has installed for it."""
    assert [Requirement(line).name for line in CLIENTS["project"]["dependencies"]] == ["httpx"]
    always, at_times = set(), set()
    for path in FOLDER.glob("presswork_client/**/*.py"):
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = {node for function in functions for node in ast.walk(function)}
        always |= imported(node for node in ast.walk(tree) if node not in inside)
        at_times |= imported(inside)
    assert always == {"httpx", "presswork_client"}
    assert at_times - always == {"torch", "pyarrow"}


def test_the_client_is_typed_and_comes_from_its_own_distribution() -> None:
    folder = Path(presswork_client.__file__).parent
    assert folder == FOLDER / "presswork_client"
    assert (folder / "py.typed").exists()
    assert set(metadata.packages_distributions()["presswork_client"]) == {"presswork-client"}
    excluded = OURS["tool"]["setuptools"]["packages"]["find"]["exclude"]
    assert excluded == ["services.client*", "services.chart*"], (
        "else the server's distribution holds the client a second time"
    )


def test_the_command_line_asks_for_the_client_that_is_in_the_tree() -> None:
    requirements = map(Requirement, OURS["project"]["optional-dependencies"]["cli"])
    [wanted] = [requirement for requirement in requirements if requirement.name == "presswork-client"]
    version = CLIENTS["project"]["version"]
    assert wanted.specifier.contains(version)
    assert version == OURS["project"]["version"]
    assert (FOLDER / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    locked = (ROOT / "requirements.lock").read_text()
    assert "presswork" not in locked, "no index is asked for what the tree holds"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "store.localhost"])
def test_there_is_no_proxy_for_this_machine_whatever_the_environment_says(monkeypatch, host) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with presswork_client.Client("http://elsewhere", "key") as client:
        for connection in (client._transport.http, client._transport.store):
            direct = connection._transport_for_url(httpx.URL(f"http://{host}:1/"))
            assert direct is connection._transport
            assert connection._transport_for_url(httpx.URL("http://elsewhere/")) is not direct
