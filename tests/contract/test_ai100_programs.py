"""Programs for a Cloud AI 100: exported, compiled, kept, found again, and the commands that do it."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.core.model.errors import SettingsError
from tests.ai100 import RECIPE, Open, drawn, specs
from tests.waiting import until
from worker.model import exported
from worker.pipeline import CompileFailed
from worker.pipelines.ai100 import __main__ as commands
from worker.pipelines.ai100 import compiling, programs
from worker.pipelines.ai100.cards import CARDS
from worker.pipelines.ai100.sdk import Sdk, SdkMissing
from worker.pipelines.ai100_stand_in import machine
from worker.pipelines.ai100_stand_in.install import install

ROOT = Path(__file__).parents[2]


def test_the_export_depends_on_all_code_that_decides_a_graph() -> None:
    """What the exporter of other runtimes counts, but for that exporter itself."""
    folder = ROOT / "worker/model"
    hashed = {file.name for pattern in programs.SOURCES for file in folder.glob(pattern)}
    assert set(exported.SOURCES) - {"exported.py", "export.py"} <= hashed
    assert {"static_export.py", "static_stages.py", "group_norm.py", "weights.py", "vae_config.py"} <= hashed
    assert all(any(folder.glob(pattern)) for pattern in programs.SOURCES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1.20.0"}, "one for sdk 1.21.2-stand-in and not 1.20.0-stand-in"),
        ({"card": "ultra"}, "one for card (standard|pro) and not ultra"),
    ],
    ids=["another SDK", "another card"],
)
def test_without_a_compiler_the_programs_that_there_are_are_named(
    opened: Open, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], words: str
) -> None:
    drawn(opened(), specs(1))
    install(tmp_path)
    for name in compiling.HARDWARE:
        (tmp_path / "exec" / name).unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    machine.reset()
    with pytest.raises(SettingsError, match=f"no compiler.*{words}"):
        drawn(opened({"PRESSWORK_AI100_SDK": str(tmp_path)}, **change), specs(1))


def test_the_command_line_is_the_table_s_with_what_overrides_it(home: Path) -> None:
    sdk = Sdk(str(home / "sdk"))
    pro, overrides = CARDS["pro"], compiling.read_overrides("unet: -mos=1 -x; vae_decoder: !-multicast-weights")
    told = compiling.flags("unet", pro, 16, 2, overrides)
    assert {"-mos=1", "-ols=1", "-x", "-aic-num-cores=16", "-stats-batchsize=2"} <= set(told)
    assert "-mos=2" not in told
    decoder = compiling.flags("vae_decoder", pro, 12, 1, overrides)
    assert "-aic-depth-first-mem=32" in decoder
    assert "-multicast-weights" not in decoder
    asked = compiling.command(sdk.compiler(), "ai100", told, Path("unet.onnx"), Path("out"))
    assert asked[0].endswith("/exec/qaic-compile")
    assert asked[1:3] == ["-m=unet.onnx", "-aic-hw-version=ai100"]
    older = compiling.command(Path("/opt/qaic-exec"), "ai100", told, Path("unet.onnx"), Path("out"))
    assert older[2] == "-aic-hw-version=2.0"
    with pytest.raises(CompileFailed, match="qaic-exec cannot compile for ai200"):
        compiling.command(Path("/opt/qaic-exec"), "ai200", told, Path("unet.onnx"), Path("out"))


def test_a_compiler_that_fails_is_quoted_and_a_damaged_program_is_found(home: Path, tmp_path: Path) -> None:
    sdk, lines = Sdk(str(home / "sdk")), []
    (tmp_path / "broken.onnx").write_bytes(b"")
    with pytest.raises(CompileFailed, match=r"could not compile broken.onnx: .*PRESSWORK_AI100_FLAGS"):
        compiling.compile_into(tmp_path, sdk, "ai100", (), tmp_path / "broken.onnx", lines.append)
    assert any("stand-in" in line for line in lines)
    (tmp_path / "programqpc.bin").write_bytes(b"damaged")
    with pytest.raises(CompileFailed, match=r"unsound.*compile it again"):
        compiling.validate(sdk, tmp_path / "programqpc.bin")


def test_a_dry_run_prints_the_commands_without_a_card_and_without_the_sdk(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRESSWORK_AI100_SDK", "/nowhere")
    assert commands.main(["compile", str(home / "tiny"), "--dry-run", "--card", "pro", "--batch", "1,4"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("AI 100 Pro, SDK ")
    assert said[0].endswith(": text_encoder+unet+vae_decoder=16")
    assert len(said) == 1 + 2 * 4
    assert any("unet-4.onnx" in line and "-stats-batchsize=8" in line and "-mos=2" in line for line in said)
    assert all("qaic-compile" in line and "-aic-num-cores=16" in line for line in said[1:])


def test_compile_s_batch_is_a_worker_s(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRESSWORK_AI100_PROGRAM_BATCH", "4")
    assert commands.main(["compile", str(home / "tiny"), "--dry-run", "--card", "pro"]) == 0
    names = re.findall(r"EXPORT/(\S+)-(\d)\.onnx", capsys.readouterr().out)
    assert dict(names) == {"text_encoder": "4", "unet": "4", "vae_decoder": "4", "vae_encoder": "1"}


def test_a_compiler_that_cannot_be_executed_is_told_as_that(tmp_path: Path) -> None:
    compiler = tmp_path / "exec" / "qaic-compile"
    compiler.parent.mkdir()
    compiler.write_bytes(b"\x7fELF of another machine")
    compiler.chmod(0o755)
    with pytest.raises(CompileFailed, match="qaic-compile cannot be run: Exec format error"):
        compiling.compile_into(tmp_path, Sdk(str(tmp_path)), "ai100", (), tmp_path / "x.onnx", lambda line: None)


def test_compile_makes_what_a_worker_then_finds(
    home: Path, on_stand_in: Mapping[str, str], opened: Open, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    for name, value in on_stand_in.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PRESSWORK_AI100_PLACEMENT", RECIPE)
    monkeypatch.setenv("PRESSWORK_SIZES", "64x64")
    assert commands.main(["compile", str(home / "tiny")]) == 0
    said = capsys.readouterr().out
    assert "vae_encoder 64x64, batch 1, 1 cores" in said
    monkeypatch.setattr(Sdk, "compiler", lambda sdk: pytest.fail("it is compiled already"))
    assert len(drawn(opened({"PRESSWORK_AI100_PLACEMENT": RECIPE}), specs(1))) == 1


def test_a_worker_compiles_all_that_it_needs_before_it_claims(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = opened({"PRESSWORK_AI100_FLAGS": "unet: -mos=3"})
    monkeypatch.setattr(Sdk, "compiler", lambda sdk: pytest.fail("it is compiled in a claim"))
    assert len(drawn(pipeline, specs(1))) == 1


def test_the_compiler_ends_with_the_worker_however_that_one_ends(tmp_path: Path) -> None:
    compiler, told = tmp_path / "exec" / "qaic-compile", tmp_path / "pid"
    compiler.parent.mkdir()
    compiler.write_text(f"#!/bin/sh\necho $$ > {told}.new; mv {told}.new {told}; exec sleep 300\n")
    compiler.chmod(0o755)
    code = (
        "import pathlib, sys; from worker.pipelines.ai100 import compiling, sdk;"
        "compiling.compile_into(pathlib.Path(sys.argv[1]), sdk.Sdk(sys.argv[1]), 'ai100', (), pathlib.Path('x'), print)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.DEVNULL) as worker:
        until(told.exists)
        worker.kill()
    until(lambda: not _runs(int(told.read_text())))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_program_is_of_the_compiler_that_made_it(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is installed apart from the runtime, and perhaps on another machine."""
    before = opened().device_kind
    install(tmp_path)
    for file in (*(tmp_path / "exec").iterdir(), tmp_path / "versions" / "apps.xml"):
        file.unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    pipeline = opened({"PRESSWORK_AI100_SDK": str(tmp_path)})
    assert len(drawn(pipeline, specs(1))) == 1
    assert pipeline.device_kind == before
    machine.reset()
    monkeypatch.setattr(Sdk, "compiler_version", lambda sdk: "1.22.0.9")
    with (
        pytest.raises(SettingsError, match=r"compiler 1\.21\.2\.stand-in and not 1\.22"),
        monkeypatch.context() as patch,
    ):
        patch.setattr(compiling, "compile_into", _no_compiler)
        opened()


def _no_compiler(*_: object) -> None:
    raise SdkMissing("It would be compiled anew.")


def test_an_empty_field_of_a_device_does_not_take_the_next_line(tmp_path: Path) -> None:
    listed = "QID 3\n\tStatus:Ready\n\tFW OEM_IMAGE_VERSION:\n\tFW IMAGE_VARIANT:AIC200.1\n\tNsp Total:16\n"
    (tmp_path / "tools").mkdir()
    tool = tmp_path / "tools" / "qaic-util"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    tool.chmod(0o755)
    [device] = Sdk(str(tmp_path)).devices()
    assert (device.number, device.ready, device.hardware, device.cores) == (3, True, "ai200", 16)
