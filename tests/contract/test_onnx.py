"""The ONNX backend draws what torch draws, each image independently, and restarts from its artefacts alone."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.core.model.errors import SettingsError
from services.core.model.specs import Spec
from worker.model import sampler
from worker.pipeline import Batch, Picture
from worker.pipelines.diffusion import DiffusionPipeline

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

from worker.pipelines.onnx import OnnxBackend, open_onnx

ROOT = Path(__file__).parents[2]
SIZE = 4
KINDS = [("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")]
RESTART = """
import json, sys
from pathlib import Path
from services.core.model.specs import Spec
from worker.pipeline import Batch
from worker.pipelines.onnx import open_onnx

model, cache, runtime = sys.argv[1:]
pipeline = open_onnx(
    Path(model), runtime=runtime, precision="fp32", device="cpu", batch_sizes=(4, 1), cache=Path(cache)
)
specs = tuple(Spec(pipeline.card.revision, "a red mug", "", seed, 64, 64, 2, 5.0) for seed in range(4))
pictures = pipeline.render(Batch(specs[0].shape, specs, 4), lambda step: None)
print(json.dumps({"sums": [int(picture.pixels.sum()) for picture in pictures], "imported": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from worker.model import make

    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    make.make(folder, "tiny-sd")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artefacts")


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module", params=[1, 2, 3], ids="{} threads".format)
def pipeline(request: pytest.FixtureRequest, kind: tuple[str, str], model: Path, cache: Path) -> DiffusionPipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(request.param))
        return opened(model, cache, *kind)


def opened(model: Path, cache: Path, runtime: str = "openvino", precision: str = "fp32") -> DiffusionPipeline:
    return open_onnx(model, runtime=runtime, precision=precision, device="cpu", batch_sizes=(SIZE, 1), cache=cache)


def spec_for(pipeline: DiffusionPipeline, seed: int, **changes: Any) -> Spec:
    spec = Spec(pipeline.card.revision, f"a red mug {seed}", "", seed, 64, 64, 2, 2.0 + seed)
    return dataclasses.replace(spec, **changes)


def render(pipeline: DiffusionPipeline, *specs: Spec) -> list[np.ndarray]:
    pictures = pipeline.render(Batch(specs[0].shape, specs, len(specs)), lambda step: None)
    assert all(isinstance(picture, Picture) for picture in pictures)
    return [picture.pixels for picture in pictures]


def test_an_image_depends_neither_on_its_slot_nor_on_other_images(pipeline: DiffusionPipeline):
    mine = spec_for(pipeline, 1, negative_prompt="blurred")
    others = [spec_for(pipeline, seed) for seed in (2, 3, 4, 5, 6, 7)]
    (wanted, *_) = render(pipeline, mine, *others[:3])
    for place in range(1, SIZE):
        neighbours = others[place : place + SIZE - 1]
        found = render(pipeline, *neighbours[:place], mine, *neighbours[place:])
        assert np.array_equal(found[place], wanted)


def test_latents_that_are_not_finite_affect_only_their_own_image(pipeline: DiffusionPipeline):
    compiled = pipeline._backend.compiled(spec_for(pipeline, 1).shape, SIZE)
    chance = np.random.default_rng(3)
    latents = chance.standard_normal((SIZE, 4, 8, 8), np.float32)
    invalid_output = latents.copy()
    invalid_output[2, 1, 3, 3], invalid_output[3, 0, 0, 0] = np.nan, np.inf
    text = compiled.encode_text(chance.integers(0, 200, (SIZE, pipeline._prompts.length)))
    text, (time,) = compiled.concat_halves([array[:1] for array in text], text), compiled.time_table([548])
    sound, found = (compiled.denoise(given, time, text) for given in (latents, invalid_output))
    assert np.array_equal(found.reshape(2, SIZE, -1)[:, :2], sound.reshape(2, SIZE, -1)[:, :2])
    pixels, finite = compiled.decode(latents)
    others, flags = compiled.decode(invalid_output)
    assert finite.all()
    assert flags.tolist() == [True, True, False, False]
    assert np.array_equal(others[:2], pixels[:2])


def test_its_pictures_are_those_of_torch(kind: tuple[str, str], model: Path, cache: Path):
    from worker.model import checkpoint
    from worker.pipelines.torch_compiled import TorchBackend

    ours = opened(model, cache, *kind)
    loaded = checkpoint.load(model)
    backend = TorchBackend(loaded, "cpu", "fp32", compiles=False, cache=cache)
    theirs = DiffusionPipeline(backend, loaded.index, loaded.revision, loaded.sampler_config, ours._prompts, (SIZE, 1))
    specs = [spec_for(ours, seed, negative_prompt="blurred" * (seed % 2)) for seed in range(SIZE)]
    levels = 2 if kind[1] == "fp32" else 40
    for found, wanted in zip(render(ours, *specs), render(theirs, *specs), strict=True):
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= levels


def test_guidance_in_numpy_depends_on_no_slot():
    chance = np.random.default_rng(8)
    prediction, scales = chance.standard_normal((16, 4, 9, 7), np.float32), np.arange(8, dtype=np.float32)
    scales = scales.reshape(8, 1, 1, 1)
    wanted = sampler.guide(prediction, scales, 0.8)
    assert wanted.dtype == np.float32
    for by in range(1, 8):
        halves = [np.roll(half, by, axis=0) for half in (prediction[:8], prediction[8:])]
        found = sampler.guide(np.concatenate(halves), np.roll(scales, by, axis=0), 0.8)
        assert np.array_equal(np.roll(found, -by, axis=0), wanted)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_second_start_needs_only_the_artefacts_and_sends_no_telemetry(
    runtime: str, model: Path, cache: Path, tmp_path: Path
):
    first = opened(model, cache, runtime)
    specs = [spec_for(first, seed, prompt="a red mug", guidance_scale=5.0) for seed in range(SIZE)]
    sums = [int(pixels.sum()) for pixels in render(first, *specs)]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", RESTART, model, cache, runtime],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    said = json.loads(ran.stdout)
    assert said["sums"] == sums
    other = {"openvino": "onnxruntime", "onnxruntime": "openvino"}[runtime]
    for name in ("diffusers", "transformers", "onnx", "onnxscript", "openvino_telemetry.main", other):
        assert name not in said["imported"]
    assert list(tmp_path.iterdir()) == []


def test_the_exported_graphs_serve_every_runtime_and_precision(model: Path, cache: Path):
    """Each file is written once: a rewritten file would have another inode or time."""
    written = []
    for kind in KINDS:
        pipeline = opened(model, cache, *kind)
        render(pipeline, *[spec_for(pipeline, 1)] * SIZE)
        files = [file for pattern in ("*.onnx", "*.bin", "*.json") for file in cache.glob(f"*/*/{pattern}")]
        written.append({(file, file.stat().st_ino, file.stat().st_mtime_ns) for file in files})
    assert {file.name for file, _, _ in written[0]} >= {"weights.bin", "time.onnx", "facts.json", f"text-{SIZE}.onnx"}
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"runtime": "abacus"}, "abacus"),
        ({"precision": "fp16"}, "fp16"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, "onnxruntime it can be fp32"),
        ({"device": "cuda:0"}, "cuda:0"),
    ],
)
def test_unsupported_options_are_refused_in_a_sentence(
    changes: dict[str, str], sentence: str, model: Path, cache: Path
):
    asked: Any = {"runtime": "openvino", "precision": "fp32", "device": "cpu"} | changes
    with pytest.raises(SettingsError, match=sentence):
        open_onnx(model, batch_sizes=(1,), cache=cache, **asked)


def test_its_reproducibility_class_names_what_decides_bytes(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    backend = opened(model, cache)._backend
    assert isinstance(backend, OnnxBackend)
    assert backend.device_kind.endswith(" x2")
    assert "openvino 20" in backend.versions
