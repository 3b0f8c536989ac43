"""Many devices on a host: how they are named, a worker for each, one compiler for all, and a death that is its own."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from services.core.model import devices
from services.core.model.errors import PressworkError, SettingsError
from services.core.settings import Settings
from services.local import device_files, up
from services.local.up import UpOptions
from tests.waiting import until
from worker import devices as each_device
from worker.pipelines import compile_turns, visible
from worker.pipelines.simulated import SimulatedPipeline

SERVERS = {"DATABASE_URL": "postgresql://h/d", "REDIS_URL": "redis://h"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("cuda:0-3", ("cuda:0", "cuda:1", "cuda:2", "cuda:3")),
        ("cuda:0,2", ("cuda:0", "cuda:2")),
        ("qaic:3,0-1", ("qaic:3", "qaic:0", "qaic:1")),
        ("simulated:5", ("simulated:5",)),
    ],
)
def test_several_devices_are_named_in_one_word(text: str, found: tuple[str, ...]) -> None:
    assert devices.parse(text) == Settings.read(SERVERS | {"PRESSWORK_DEVICES": text}).devices == found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cuda", "it must name devices of one kind (cuda, rocm, qaic, simulated), as cuda:0-3 and cuda:0,2 do"),
        ("tpu:0-3", "it must name devices of one kind"),
        ("cuda:0,qaic:1", "it must name devices of one kind"),
        ("cuda:3-1", "3-1 ends before it begins"),
        ("cuda:0-2,1", "it must name each device once"),
        ("cuda:0-9999", "it must name at most 64 devices"),
    ],
)
def test_what_names_no_devices_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"PRESSWORK_DEVICES is {text!r}; {sentence}")):
        Settings.read(SERVERS | {"PRESSWORK_DEVICES": text})


def test_up_runs_a_worker_on_each_device(tmp_path: Path) -> None:
    own = {name: {"DATABASE_URL": f"postgresql://{name}"} for name in ("web", "scheduler", "worker")}
    options = UpOptions(tmp_path, 1, "torch", devices=devices.parse("cuda:0,2"))
    programs = up._programs(options, {"PRESSWORK_ARTEFACTS": "a", "PRESSWORK_DEVICES": "cuda:7"}, own)
    workers = [program.env for program in programs if program.name.startswith("worker")]
    assert [(one["PRESSWORK_DEVICE"], one["PRESSWORK_DEVICES"]) for one in workers] == [("cuda:0", ""), ("cuda:2", "")]
    assert {(one["PRESSWORK_WORKERS"], one["PRESSWORK_ARTEFACTS"]) for one in workers} == {("2", "a")}


@pytest.mark.parametrize(
    ("given", "here", "sentence"),
    [
        ({"pipeline": "torch", "devices": "cuda:0-7"}, 0, "--devices names cuda:0, and this machine has none"),
        ({"pipeline": "torch", "devices": "cuda:0,1"}, 1, "--devices names cuda:1, and this machine has cuda:0 alone"),
        ({"pipeline": "torch", "devices": "cuda:2-9"}, 4, "names cuda:4, and this machine has cuda:0 to cuda:3"),
        ({"pipeline": "torch", "devices": "qaic:0"}, 0, "The pipeline torch does not run on qaic:0; ai100 does."),
        ({"pipeline": "ai100", "devices": "cuda:0"}, 1, "does not run on cuda:0; torch and onnx do."),
        ({"pipeline": "torch", "devices": "cuda:0", "workers": 2}, 1, "leave --workers and a second --model out"),
    ],
)
def test_devices_that_are_not_there_are_refused_before_anything_starts(
    given: dict[str, str], here: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(here):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    files = {"cuda": (tmp_path, r"nvidia\d+"), "qaic": (tmp_path, r"accel\d+")}
    monkeypatch.setattr(device_files, "FILES", files)
    options = UpOptions(
        tmp_path / "home", int(given.get("workers", 1)), given["pipeline"], devices=devices.parse(given["devices"])
    )
    with pytest.raises(PressworkError, match=re.escape(sentence)):
        up.up(options, {}, print)
    assert not (tmp_path / "home").exists()


def test_each_simulated_device_has_a_name_of_its_own_and_the_same_kind() -> None:
    made = [
        SimulatedPipeline(Settings.read(SERVERS | {"PRESSWORK_DEVICE": name}))
        for name in ("cpu", "simulated:0", "simulated:1")
    ]
    assert [one.device for one in made] == ["simulated", "simulated:0 simulated", "simulated:1 simulated"]
    assert {one.device_kind for one in made} == {"simulated"}


def test_a_worker_sees_its_gpu_alone_and_names_it_as_people_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible, "_shown", {})
    for device, given, shown in (
        ("cuda", "", ""),
        ("cpu", "", ""),
        ("cuda:0", "2,3", "2,3"),
        ("cuda:3", "", "3"),
        ("cuda:1", "GPU-a, GPU-b", "GPU-b"),
    ):
        monkeypatch.setenv(visible.VARIABLE, given)
        assert visible.show_only(device) == (device if shown == given else "cuda:0")
        assert os.environ[visible.VARIABLE] == shown
    assert (visible.known_as("cuda:0"), visible.known_as("cpu")) == ("cuda:1", "cpu")
    monkeypatch.setenv(visible.VARIABLE, "2,3")
    with pytest.raises(SettingsError, match="PRESSWORK_DEVICE is 'cuda:2', but CUDA_VISIBLE_DEVICES is '2,3'"):
        visible.show_only("cuda:2")


def _compile(cache: Path, log: Path, seconds: float = 0.3, *, fails: bool = False) -> None:
    try:
        with compile_turns.first_alone(cache, "a network"):
            known = (cache / "result").exists()
            with log.open("a") as file:
                file.write("read\n" if known else "compiled\n")
            time.sleep(seconds)
            if fails:
                raise RuntimeError
            (cache / "result").touch()
    except RuntimeError:
        pass


def _started(*arguments: object, **more: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_compile, args=arguments, kwargs=more)
    process.start()
    return process


def test_one_worker_compiles_and_the_others_read(tmp_path: Path) -> None:
    cache, log = tmp_path / "cache", tmp_path / "log"
    for process in [_started(cache, log) for _ in range(3)]:
        process.join(30)
    assert sorted(log.read_text().split()) == ["compiled", "read", "read"]
    _compile(cache, log, 0)
    assert log.read_text().split()[-1] == "read"


def test_a_worker_that_dies_or_fails_while_it_compiles_gives_the_turn_up(tmp_path: Path) -> None:
    cache, log = tmp_path / "cache", tmp_path / "log"
    dies = _started(cache, log, 60.0)
    assert until(log.exists, 20)
    waits = threading.Thread(target=_compile, args=(cache, log, 0), kwargs={"fails": True})
    waits.start()
    waits.join(0.5)
    assert waits.is_alive()
    dies.kill()
    waits.join(10)
    assert not waits.is_alive()
    _compile(cache, log, 0)
    assert log.read_text().split() == ["compiled", "compiled", "compiled"]


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    with compile_turns.first_alone(tmp_path, "a"), compile_turns.first_alone(tmp_path, "a", patience=0.1):
        pass
    with compile_turns.first_alone(tmp_path, "b"), compile_turns.first_alone(tmp_path, "c"):
        pass


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where each worker that is started says which device it has, and its process."""
    log = tmp_path / "started"
    log.touch()
    monkeypatch.setattr(each_device, "python", lambda _: [sys.executable, "-c", "exec(__import__('os').environ['DO'])"])
    monkeypatch.setattr(each_device.signal, "signal", lambda *_: None)
    return log


def test_one_devices_death_is_its_own(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "os.environ['PRESSWORK_METRICS_PORT']"
    tells = f"print(os.environ['PRESSWORK_DEVICE'], os.getpid(), {shown}, file=open({str(started)!r}, 'a'), flush=True)"
    environ = os.environ | {"DO": f"import os, time; {tells}; time.sleep(60)", "PRESSWORK_METRICS_PORT": "9420"}
    handlers = {}
    monkeypatch.setattr(each_device.signal, "signal", handlers.__setitem__)
    ended: list[int] = []
    runs = threading.Thread(target=lambda: ended.append(each_device.run(("simulated:0", "simulated:1"), environ)))
    runs.start()

    def found() -> list[list[str]]:
        return [line.split() for line in started.read_text().splitlines()]

    assert until(lambda: len(found()) == 2, 20)
    pids = {device: pid for device, pid, _ in found()}
    assert {device: port for device, _, port in found()} == {"simulated:0": "9420", "simulated:1": "9421"}
    os.kill(int(pids["simulated:1"]), signal.SIGKILL)
    assert until(lambda: len(found()) == 3, 20)
    assert found()[2][::2] == ["simulated:1", "9421"]
    os.kill(int(pids["simulated:0"]), 0)  # it has noticed nothing
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    runs.join(20)
    assert ended == [0]
    for pid in (pids["simulated:0"], found()[2][1]):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_if_no_device_comes_up_it_ends_as_the_workers_did(started: Path) -> None:
    assert each_device.run(("simulated:0", "simulated:1"), os.environ | {"DO": "raise SystemExit(72)"}) == 72


def test_workers_that_end_early_one_after_the_other_do_not_end_the_rest(started: Path, tmp_path: Path) -> None:
    """Each device ends once, soon after its start, while the other one is up."""
    once = f"""if True:
        import os, pathlib, time
        mark = pathlib.Path({str(tmp_path)!r}, os.environ["PRESSWORK_DEVICE"])
        print(mark.name, os.getpid(), file=open({str(started)!r}, "a"), flush=True)
        if mark.exists(): time.sleep(60)
        mark.touch()
        time.sleep(2 if mark.name.endswith("1") else 0.2)
    """
    handlers: dict[int, Any] = {}
    ended: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(each_device.signal, "signal", handlers.__setitem__)
        environ = os.environ | {"DO": once}
        runs = threading.Thread(target=lambda: ended.append(each_device.run(("simulated:0", "simulated:1"), environ)))
        runs.start()
        until(lambda: len(started.read_text().splitlines()) == 4, 20)
        assert runs.is_alive()
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        runs.join(20)
    assert ended == [0]


def test_the_worker_refuses_devices_of_another_pipeline() -> None:
    environ = os.environ | SERVERS | {"PRESSWORK_PIPELINE": "torch", "PRESSWORK_DEVICES": "qaic:0-3"}
    done = subprocess.run(
        [sys.executable, "-m", "worker.app"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "worker: The pipeline torch does not run on qaic:0; ai100 does.\n")


def test_the_worker_refuses_ports_for_metrics_that_there_are_not() -> None:
    environ = os.environ | SERVERS | {"PRESSWORK_DEVICES": "simulated:0-1", "PRESSWORK_METRICS_PORT": "65535"}
    done = subprocess.run(
        [sys.executable, "-m", "worker.app"],
        env=environ | {"PRESSWORK_PIPELINE": "simulated"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "worker: PRESSWORK_METRICS_PORT is too high: each worker takes one of the ports behind it.",
    )
