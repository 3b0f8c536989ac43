"""The Cloud AI 100 pipeline on the stand-in: overlap changes no byte, the published time and the bound hold, and what
can go wrong is said in a sentence."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from services.core.model.errors import SettingsError
from services.core.model.specs import Spec
from services.core.settings import Settings
from tests.waiting import until
from worker.model import exported, make
from worker.pipeline import Batch, CompileFailed, DeviceSick, Picture, Pipeline, reproducibility_class
from worker.pipelines import cloud_ai100
from worker.pipelines.ai100 import __main__ as commands
from worker.pipelines.ai100 import cards, checks, compiling, placement, programs
from worker.pipelines.ai100.cards import CARDS, PUBLISHED
from worker.pipelines.ai100.programs import Programs
from worker.pipelines.ai100.sdk import Sdk, SdkMissing
from worker.pipelines.ai100_stand_in import machine
from worker.pipelines.ai100_stand_in import qaicrt as stand_in
from worker.pipelines.ai100_stand_in.install import install
from worker.pipelines.cloud_ai100 import Ai100Pipeline
from worker.pipelines.diffusion import DiffusionPipeline
from worker.pipelines.registry import open_pipeline

ROOT = Path(__file__).parents[2]
SERVERS = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"}
RECIPE = str(placement.RECIPE)
Open = Callable[..., Ai100Pipeline]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and the stand-in in the SDK's place."""
    folder = tmp_path_factory.mktemp("ai100")
    make.make(folder / "tiny", "tiny")
    install(folder / "sdk")
    return folder


@pytest.fixture
def settings_for(home: Path, on_stand_in: Mapping[str, str]) -> Callable[..., Settings]:
    def read(**more: str) -> Settings:
        chosen = {"PRESSWORK_PIPELINE": "ai100", "PRESSWORK_MODEL_DIR": str(home / "tiny")}
        return Settings.read(
            SERVERS | chosen | {"PRESSWORK_BATCH_SIZES": "16,4,1", "PRESSWORK_SIZES": "64x64"} | on_stand_in | more
        )

    return read


@pytest.fixture
def opened(settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a pipeline on a stand-in that has just been started, with AI100_STAND_IN_ variables in small letters."""
    pipelines: list[Ai100Pipeline] = []
    machine.reset()

    def make_one(settings: dict[str, str] | None = None, **stand_in: str) -> Ai100Pipeline:
        for name, value in stand_in.items():
            monkeypatch.setenv(f"AI100_STAND_IN_{name.upper()}", value)
        pipelines.append(cloud_ai100.open_pipeline(settings_for(**(settings or {}))))
        return pipelines[-1]

    yield make_one
    for pipeline in pipelines:
        pipeline.close()


def specs(count: int, **changes: object) -> tuple[Spec, ...]:
    usual = Spec("revision", "a red mug", "blurred", 7, 64, 64, 3, 7.5)
    return tuple(dataclasses.replace(usual, seed=n, guidance_scale=changes.get("guidance", 2.0 + n), **{
        name: value for name, value in changes.items() if name != "guidance"
    }) for n in range(count))  # fmt: skip


def drawn(pipeline: Pipeline, wanted: tuple[Spec, ...], size: int = 0, serial: bool = False) -> list[bytes]:
    batch = Batch(wanted[0].shape, (*wanted, *wanted[-1:] * (size - len(wanted))), len(wanted))
    render = DiffusionPipeline.render if serial else type(pipeline).render
    found = render(pipeline, batch, lambda step: None)
    return [picture.pixels.tobytes() for picture in found if isinstance(picture, Picture)][: len(wanted)]


PLACEMENTS = {
    "one after the other": ({}, {}),
    "all resident": ({"PRESSWORK_AI100_PLACEMENT": "text_encoder=1,unet=11,vae_decoder=2"}, {}),
    "text and decoder in turns": ({"PRESSWORK_AI100_PLACEMENT": "text_encoder+vae_decoder=2,unet=12"}, {}),
    "U-Net on two of three devices": (
        {"PRESSWORK_AI100_PLACEMENT": "text_encoder=1,vae_decoder=13;unet=14", "PRESSWORK_DEVICE": "qaic:0,1,2"},
        {"devices": "3"},
    ),
    "two devices alike": ({"PRESSWORK_DEVICE": "qaic:1,0"}, {"devices": "2"}),
}
OFTEN = ("one after the other", "all resident", "U-Net on two of three devices")


@pytest.mark.parametrize(
    ("settings", "stand_in"),
    [
        pytest.param(*given, id=name, marks=() if name in OFTEN else pytest.mark.chaos)
        for name, given in PLACEMENTS.items()
    ],
)
def test_overlap_changes_no_byte(opened: Open, settings: dict[str, str], stand_in: dict[str, str]) -> None:
    pipeline = opened(settings, **stand_in)
    wanted = tuple(
        dataclasses.replace(spec, prompt=f"{n} red mugs", negative_prompt="blurred" if n % 2 else f"mug {n}")
        for n, spec in enumerate(specs(4))
    )
    overlapped = drawn(pipeline, wanted)
    assert len(set(overlapped)) == 4
    assert overlapped == [one for spec in wanted for one in drawn(pipeline, (spec,), serial=True)]


def levels_apart(pipeline: Ai100Pipeline, settings: Settings, wanted: tuple[Spec, ...]) -> int:
    """How far the pictures are from those of the pipeline torch, at most."""
    torch = open_pipeline(dataclasses.replace(settings, pipeline="torch", device="cpu"))
    ours, theirs = (
        np.frombuffer(b"".join(drawn(one, (spec,))), np.uint8).astype(int)
        for spec in wanted
        for one in (pipeline, torch)
    )
    return int(np.abs(ours - theirs).max())


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_it_draws_what_torch_draws(opened: Open, settings_for: Callable[..., Settings], guidance: float) -> None:
    assert levels_apart(opened(), settings_for(), specs(1, guidance=guidance, steps=10)) <= 1


@pytest.mark.chaos  # an export of its own
def test_prompts_in_chunks_are_drawn_as_torch_draws_them(
    opened: Open, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    make.make(tmp_path / "long", "tiny-sd")
    file = tmp_path / "long" / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps(index | {"presswork": index["presswork"] | {"long_prompts": True}}))
    chosen = {"PRESSWORK_MODEL_DIR": str(tmp_path / "long"), "PRESSWORK_SIZES": "64x64"}
    wanted = specs(1, guidance=5.0, prompt="a red mug on a wooden table " * 15, prompt_chunks=2)
    assert levels_apart(opened(chosen), settings_for(**chosen), wanted) <= 1


def test_without_guidance_the_other_half_draws_images_too(opened: Open) -> None:
    pipeline = opened()
    wanted = specs(3, guidance=1.0)
    before = dict(machine.CLOCK.runs)
    found = drawn(pipeline, wanted)
    assert machine.CLOCK.runs["unet"] - before.get("unet", 0) == 2 * 3  # two passes of three steps
    assert found == [one for spec in wanted for one in drawn(pipeline, (spec,))]


def test_the_padding_of_a_batch_is_not_rendered(opened: Open) -> None:
    pipeline = opened()
    assert len(pipeline.render(Batch(specs(1)[0].shape, specs(1) * 16, 2), lambda step: None)) == 16
    assert machine.CLOCK.runs["unet"] == 2 * 3


def test_a_batch_is_silent_no_longer_than_one_image(opened: Open) -> None:
    """The watchdog allows for the silence of the canary, one image a device."""
    pipeline, heard = opened(), [0.0]
    wanted = specs(4)
    drawn(pipeline, wanted)
    pipeline.render(Batch(wanted[0].shape, wanted, 4), lambda step: heard.append(machine.CLOCK.host))
    assert max(later - sooner for sooner, later in pairwise(heard[1:])) <= PUBLISHED.run("unet", 14) * 1.01


@pytest.mark.chaos  # an export of its own
def test_a_program_may_render_several_images_at_once(opened: Open) -> None:
    pipeline = opened({"PRESSWORK_AI100_PROGRAM_BATCH": "2"})
    wanted = specs(3)
    first, second, third = drawn(pipeline, wanted, size=4)
    assert drawn(pipeline, (wanted[2], wanted[0])) == [third, first]
    assert drawn(pipeline, (wanted[1],)) == [second]
    assert machine.CLOCK.runs["unet"] == 3 * (2 + 1 + 1)


def test_the_pictures_of_a_batch_are_encoded_at_once(opened: Open) -> None:
    pipeline, pictures = opened(), [np.full((64, 64, 3), shade, np.uint8) for shade in (40, 200)]
    wanted = specs(3, input_sha256="picture", first_step=2)
    batch = Batch(wanted[0].shape, wanted, 3, (pictures[0], pictures[1], pictures[0]))
    pipeline.render(batch, lambda step: None)
    before = machine.CLOCK.switches
    pipeline.render(batch, lambda step: None)
    assert machine.CLOCK.runs["vae_encoder"] == 1 + 2 * 2  # one when it was prepared
    assert machine.CLOCK.switches - before == 4, "text encoder, encoder, U-Net, decoder"


def milliseconds(pipeline: Ai100Pipeline, images: int, steps: int) -> float:
    """Of the stand-in's clock, for an image; the second of two batches is measured, as on a machine that works."""
    wanted = specs(images, steps=steps, negative_prompt="")
    drawn(pipeline, wanted)
    began = machine.CLOCK.host
    drawn(pipeline, wanted)
    return (machine.CLOCK.host - began) / images


@pytest.mark.parametrize(("steps", "published"), [(10, 971), (16, 1335)])
def test_the_published_placement_takes_the_published_time_on_the_stand_in(
    opened: Open, steps: int, published: int
) -> None:
    pipeline = opened({"PRESSWORK_AI100_PLACEMENT": RECIPE})
    assert milliseconds(pipeline, 1, steps) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("card", ["standard", pytest.param("pro", marks=pytest.mark.chaos)])
def test_ours_sustains_93_percent_of_the_bound_on_the_stand_in(opened: Open, card: str) -> None:
    pipeline = opened(card=card)
    bound = placement.bound(CARDS[card], PUBLISHED, 10)
    assert 0.93 <= bound / milliseconds(pipeline, 16, 10) <= 1.0


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.chaos)])
def test_several_devices_switch_at_once_and_sustain_it_too(opened: Open, devices: int) -> None:
    """One step that takes as long as ten: to the clock it is the same, and less is computed."""
    times = cards.read_times("unet=607x12")
    chosen = {
        "PRESSWORK_DEVICE": "qaic:" + ",".join(map(str, range(devices))),
        "PRESSWORK_BATCH_SIZES": f"{16 * devices},1",
        "PRESSWORK_AI100_PLACEMENT": "text_encoder+unet+vae_decoder=14",
    }
    pipeline = opened(chosen, devices=str(devices), times="unet=607x12")
    drawn(pipeline, specs(devices, steps=1))
    before = machine.CLOCK.host
    drawn(pipeline, specs(16 * devices, steps=1, negative_prompt=""))
    bound = placement.bound(CARDS["standard"], times, 1) / devices
    assert 0.93 <= bound / ((machine.CLOCK.host - before) / 16 / devices) <= 1.0


def test_programs_of_other_sizes_make_room_where_memory_is_short(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the other size are the same files here, which spares an export."""
    pipeline = opened()
    before = drawn(pipeline, specs(1))
    station, device, needed = pipeline.ai100.stations[0], machine.device(0), machine.device(0).mib_used
    for verb in ("find", "graph"):
        told = getattr(Programs, verb)
        monkeypatch.setattr(Programs, verb, lambda self, name, _, *rest, told=told: told(self, name, (64, 64), *rest))
    monkeypatch.setenv("AI100_STAND_IN_MEMORY", str(needed))
    text = station.session("text_encoder", (64, 64))
    for network in cards.NETWORKS:
        station.session(network, (128, 128))
    assert station.session("text_encoder", (128, 128)) is text, "one for all sizes"
    assert device.mib_used == needed
    assert drawn(pipeline, specs(1)) == before
    assert device.mib_used == needed
    monkeypatch.setenv("AI100_STAND_IN_MEMORY", str(needed - 1))
    with pytest.raises(SettingsError, match=f"of {needed - 1} MiB free.*stop"):
        [station.session(network, (128, 128)) for network in cards.NETWORKS]


def test_a_program_that_cannot_be_activated_is_told_with_what_is_free(opened: Open) -> None:
    pipeline = opened()
    machine.device(0).cores_used += 3  # of another process
    with pytest.raises(CompileFailed, match=r"it takes 14 cores and 11 are free.*QS_ERROR"):
        drawn(pipeline, specs(1))


def test_resident_programs_decode_while_the_next_image_is_denoised(opened: Open) -> None:
    chosen = {"PRESSWORK_AI100_PLACEMENT": "text_encoder=1,unet=11,vae_decoder=2"}
    pipeline = opened(chosen)
    found = milliseconds(pipeline, 4, 10)
    planned = placement.batch_ms(placement.read_plan(*chosen.values(), 1).placements[0], PUBLISHED, 10, 4) / 4
    assert found == pytest.approx(planned, rel=0.01)
    denoise, decode = 10 * PUBLISHED.run("unet", 11), PUBLISHED.run("vae_decoder", 2)
    assert found < denoise + decode / 3


def test_the_stand_in_says_what_it_is_wherever_it_shows(opened: Open, on_stand_in: Mapping[str, str]) -> None:
    pipeline = opened()
    for text in (pipeline.device, pipeline.device_kind, pipeline.versions, reproducibility_class(pipeline, 16)):
        assert "stand-in" in text
    assert reproducibility_class(pipeline, 16).count("/") == 4
    drawn(pipeline, specs(1))
    programs = list(Path(on_stand_in["PRESSWORK_ARTEFACTS"]).glob("*/*/programqpc.bin"))
    assert programs
    assert all(b"stand-in" in program.read_bytes() for program in programs)


def test_the_worker_never_imports_the_stand_in() -> None:
    for file in (ROOT / "worker").rglob("*.py"):
        if "ai100_stand_in" not in file.parts:
            text = file.read_text(encoding="utf-8")
            names = {name for node in ast.walk(ast.parse(text)) for name in _imported(node)}
            assert not any("ai100_stand_in" in name for name in names), file


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_everything_that_the_worker_uses_of_the_sdk_is_in_the_list_with_its_source() -> None:
    listed = (ROOT / "worker/pipelines/ai100_stand_in/SURFACE.md").read_text(encoding="utf-8")
    used = set()
    for name in ("sdk.py", "session.py"):
        text = (ROOT / "worker/pipelines/ai100" / name).read_text(encoding="utf-8")
        used |= set(re.findall(r"(?:qaicrt|self\._rt)\.([A-Z]\w+)", text))
    assert {"Context", "Program", "ExecObj", "QBuffer", "Util"} <= used
    for name in used:
        assert hasattr(stand_in, name), name
        assert re.search(rf"^\| `{name}\b.*\| \S+:\d+", listed, re.MULTILINE), name


def test_every_method_that_the_worker_calls_is_in_the_list_too() -> None:
    listed = (ROOT / "worker/pipelines/ai100_stand_in/SURFACE.md").read_text(encoding="utf-8")
    texts = (ROOT.joinpath("worker/pipelines/ai100", name).read_text("utf-8") for name in ("sdk.py", "session.py"))
    used = {node.attr for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    ours = {name for one in vars(stand_in).values() if isinstance(one, type) for name in vars(one)}
    camel = {name for name in used if re.fullmatch(r"[a-z]+[A-Z]\w+|[A-Z][a-z]+[A-Z]\w+Ms", name)}
    methods = camel | {name for name in used & ours if name in ("load", "activate", "deactivate", "enqueue")}
    assert {"activate", "load", "enqueue", "setData", "getData", "waitForCompletion", "getResourceInfo"} <= methods
    for name in methods:
        assert re.search(rf"^\|[^|]*\b{name}\b[^|]*\| \S+:\d+", listed, re.MULTILINE), name
    for name in methods - {"nspFree", "dramFree", "dramTotal", "dataPathTimeoutMs", "SubmitRetryTimeoutMs"}:
        assert name in ours, name


def test_the_memory_of_an_input_lives_as_long_as_its_buffer(opened: Open) -> None:
    pipeline = opened()
    session = pipeline.ai100.stations[0].session("vae_decoder", (64, 64))
    latents = session.bindings["latents"]
    buffer = session.buffer("latents", np.ones(latents.shape))
    assert np.frombuffer(buffer.given.data, latents.dtype).all()
    with pytest.raises(RuntimeError, match="memory of a QBuffer is gone"):
        bytes(stand_in.QBuffer(np.ones(3, np.uint8)))


def test_the_export_depends_on_all_code_that_decides_a_graph() -> None:
    """What the exporter of other runtimes counts, but for that exporter itself."""
    folder = ROOT / "worker/model"
    hashed = {file.name for pattern in programs.SOURCES for file in folder.glob(pattern)}
    assert set(exported.SOURCES) - {"exported.py", "export.py"} <= hashed
    assert {"static_export.py", "static_stages.py", "group_norm.py", "weights.py", "vae_config.py"} <= hashed
    assert all(any(folder.glob(pattern)) for pattern in programs.SOURCES)


FAULTS = {
    "activation": (CompileFailed, "QS_ERROR"),
    "shape": (SettingsError, "another batch, size or model.*ai100 compile"),
    "busy": (SettingsError, "1 cores free.*stop.*PRESSWORK_DEVICE"),
    "memory": (SettingsError, "1 of 16384 MiB free.*stop"),
    "permission": (SettingsError, "group `qaic`.*PRESSWORK_ACCEL_GROUP"),
    "lost@3": (DeviceSick, "QS_DEV_ERROR.*reset"),
    "timeout@4": (DeviceSick, "QS_ERROR.*did not answer.*reset"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_device_is_one_sentence_with_what_to_do(opened: Open, fault: str) -> None:
    error, words = FAULTS[fault]
    with pytest.raises(error, match=words) as raised:
        drawn(opened(faults=fault), specs(2))
    assert "\n" not in str(raised.value)


def test_a_lost_device_stays_lost_and_another_process_finds_it_well(opened: Open) -> None:
    pipeline = opened(faults="lost@3")
    for _ in range(2):
        with pytest.raises(DeviceSick):
            drawn(pipeline, specs(2))
    machine.reset()
    assert len(drawn(opened(faults=""), specs(2))) == 2


BAD_SETTINGS = {
    "no SDK": ({"PRESSWORK_AI100_SDK": "/nowhere"}, "no qaic-util.*install"),
    "14 cores": ({"PRESSWORK_AI100_PLACEMENT": "text_encoder+unet+vae_decoder=16"}, "takes 16 cores.*has 14; use"),
    "no such device": ({"PRESSWORK_DEVICE": "qaic:3"}, "names device 3; there are 0"),
    "a GPU": ({"PRESSWORK_DEVICE": "cuda"}, "it can be qaic:0"),
    "float32": ({"PRESSWORK_PRECISION": "fp32"}, "only be fp16"),
    "flags": ({"PRESSWORK_AI100_FLAGS": "unit: -mos=1"}, "PRESSWORK_AI100_FLAGS"),
}


@pytest.mark.parametrize(("settings", "words"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_each_bad_setting_is_one_sentence_with_what_to_do(opened: Open, settings: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        opened(settings)
    assert "\n" not in str(raised.value)


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


def test_check_runs_every_place_that_could_not_be_run_without_a_card(
    home: Path, on_stand_in: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.reset()
    for name, value in on_stand_in.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(checks, "IMAGES", 2)
    monkeypatch.setattr(checks, "REPEATS", 1)
    monkeypatch.setattr(checks, "COMPILED", ("vae_decoder",))
    monkeypatch.setattr(checks, "SHARE", 0.0001)  # this machine may be slow
    assert commands.main(["check", str(home / "tiny")]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    page = (
        (ROOT / "worker/AI100.md").read_text(encoding="utf-8").partition("## What could not")[2].partition("\n## ")[0]
    )
    for place in re.findall(r"^\| ([a-z][^|]*?) \|", page, re.MULTILINE)[1:]:
        assert place.split(",")[0] in said or place.startswith("each network"), place
    assert "qaic-compile: 1 programs in " in said
    assert "0.971 s, 1.335 s on the model card" in said
    assert page.count("\n| ") - 1 == 9, "worker/README.md counts them"
    assert re.search(r"PRESSWORK_AI100_TIMES=text_encoder=[\d.]+x\d+,unet=.*switch=\d+$", said, re.MULTILINE)
    monkeypatch.setenv("AI100_STAND_IN_FAULTS", "permission")
    monkeypatch.setattr(Sdk, "version", lambda sdk: sdk.no_such_binding)
    assert commands.main(["check", str(home / "tiny")]) == 1
    said = capsys.readouterr().out
    assert "failed: Device 0 is not ready" in said
    assert "failed: AttributeError: 'Sdk' object has no" in said


def test_check_fails_what_is_slow() -> None:
    assert [checks.beside_the_bound(0.569, seconds).failed for seconds in (0.6, 0.62)] == [False, True]
    rows = (checks.beside_the_published({10: 0.971, 16: seconds}) for seconds in (1.4, 1.5))
    assert [row.failed for row in rows] == [False, True]


def test_the_compilers_flags_are_part_of_the_class(opened: Open) -> None:
    usual, other = (opened({"PRESSWORK_AI100_FLAGS": flags}).device_kind for flags in ("", "unet: -mos=1"))
    usual, compiler = usual.split(", compiler ")
    assert other.startswith(f"{usual}, ai100 flags ")
    assert compiler == "1.21.2.stand-in"


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


def test_a_program_is_not_deactivated_while_something_of_it_runs(opened: Open) -> None:
    pipeline = opened()
    drawn(pipeline, specs(1))
    session = pipeline.ai100.stations[0].session("vae_decoder", (64, 64))
    held = session._rt.ExecObj(session.device.context, session._program)
    with pytest.raises(DeviceSick, match=r"cannot be deactivated.*QS_INVAL"):
        drawn(pipeline, specs(1))
    del held


def test_the_canary_tries_every_device_and_one_sick_device_is_found(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = opened({"PRESSWORK_DEVICE": "qaic:0,1"}, devices="2")
    alone = Batch(specs(1)[0].shape, specs(1) * 4, 1)
    pipeline.render(alone, lambda step: None)
    compute = stand_in.Program.compute

    def sick(program: stand_in.Program, buffers: list[stand_in.QBuffer]) -> list[np.ndarray]:
        found = compute(program, buffers)
        bad = program.device.number == 1 and program.qpc.header.network == "unet"
        return [one * np.float32("nan") for one in found] if bad else found

    monkeypatch.setattr(stand_in.Program, "compute", sick)
    with pytest.raises(DeviceSick, match="that another one drew"):
        pipeline.render(alone, lambda step: None)
