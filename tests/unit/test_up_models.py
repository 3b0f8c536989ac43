"""`presswork up --model` more than once: workers of its own for each model, and names that differ. And `--stand-in`."""

import socket
from pathlib import Path

import pytest

from services.core.model.errors import PressworkError
from services.local import up
from services.local.errors import PortTaken
from services.local.home import Home
from services.local.up import UpOptions
from worker.model.make import make


def test_each_model_gets_workers_of_its_own_that_share_the_cpus(tmp_path: Path) -> None:
    own = {name: {"DATABASE_URL": f"postgresql://{name}"} for name in ("web", "scheduler", "worker")}
    options = UpOptions(tmp_path, 2, "onnx", ("one", "two"))
    programs = up._programs(options, {"PRESSWORK_MODEL_DIR": "one", "PRESSWORK_MODEL": "first"}, own)
    workers = [program for program in programs if program.name.startswith("worker")]
    assert [(one.name, one.env["PRESSWORK_MODEL_DIR"]) for one in workers] == [
        ("worker-1", "one"), ("worker-2", "one"), ("worker-3", "two"), ("worker-4", "two"),
    ]  # fmt: skip
    assert {one.env["PRESSWORK_WORKERS"] for one in workers} == {"4"}
    assert programs[0].env["PRESSWORK_MODEL"] == "first"
    plain = up._programs(UpOptions(tmp_path, 1, "onnx"), {"PRESSWORK_MODEL_DIR": "mine"}, own)
    assert [one.env["PRESSWORK_MODEL_DIR"] for one in plain[2:]] == ["mine"]


def test_the_first_model_is_the_default_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    tiny = str(tmp_path / "tiny")
    make(Path(tiny))

    def values(*models: str, pipeline: str = "onnx") -> dict[str, str]:
        return up._pipeline_values(UpOptions(tmp_path, 1, pipeline, models), {}, Home(tmp_path))

    found = values(tiny, "presswork-mini")
    assert (found["PRESSWORK_MODEL"], found["PRESSWORK_MODEL_DIR"]) == ("tiny", tiny)
    with pytest.raises(PressworkError, match="are both named tiny; give one another name"):
        values(tiny, tiny)
    with pytest.raises(PressworkError, match="simulated serves no model of a directory"):
        values(tiny, pipeline="simulated")


def test_a_stand_in_is_installed_in_the_folder_in_the_sdk_s_place(tmp_path: Path) -> None:
    said: list[str] = []
    found = up._stand_in(Home(tmp_path), said.append)
    assert (Path(found["PRESSWORK_AI100_SDK"]) / "exec/qaic-compile").stat().st_mode & 0o100
    assert "stand-in" in said[0]
    with pytest.raises(PressworkError, match=r"--stand-in .* goes with --pipeline ai100"):
        up.up(UpOptions(tmp_path, 1, "simulated", stand_in=True), {}, said.append)


def test_metrics_are_shown_on_ports_in_a_row_if_asked_for_and_else_nowhere(tmp_path: Path) -> None:
    own: dict[str, dict[str, str]] = {name: {} for name in ("web", "scheduler", "worker")}

    def ports(asked: int) -> list[str | None]:
        programs = up._programs(UpOptions(tmp_path, 2, "simulated"), {}, own, asked)
        return [program.env.get("PRESSWORK_METRICS_PORT") for program in programs]

    assert ports(9420) == [None, "9420", "9421", "9422"]
    assert ports(0) == [None, "0", "0", "0"]
    with pytest.raises(PressworkError, match="PRESSWORK_METRICS_PORT is too high"):
        ports(65534)


def test_ports_for_metrics_that_others_have_are_named_before_any_program_starts() -> None:
    up._check_metrics_ports([0, 0], 8420)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        with pytest.raises(PortTaken, match=f"Port {taken}, for metrics, is in use by another program: 2 ports from"):
            up._check_metrics_ports([taken, taken + 1], 8420)
    with pytest.raises(PortTaken, match="Port 8420, for metrics, is the web server's"):
        up._check_metrics_ports([8420, 8421], 8420)
