"""`presswork bench engine` compares like with like: stock diffusers and the engine draw the same pictures."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.core.model.specs import Shape
from worker.bench import __main__ as bench
from worker.bench import measure
from worker.bench.contender import Setup
from worker.bench.stock import Stock
from worker.model import checkpoint, networks
from worker.model.directory import FLEXIBLE
from worker.model.make import make
from worker.model.presets import PRESETS
from worker.pipelines.torch_compiled import open_torch


@pytest.mark.parametrize(
    ("preset", "scheduler", "solver"),
    [
        ("tiny", {}, None),
        pytest.param("tiny", {}, "ddim", marks=pytest.mark.chaos),
        ("tiny-sd", {}, None),
        ("tiny-sd", {"_class_name": "LCMScheduler"}, None),
    ],
    ids=str,
)
def test_stock_diffusers_and_the_engine_draw_the_same_pictures_from_the_same_weights(
    tmp_path: Path, preset: str, scheduler: dict[str, Any], solver: str | None
):
    make(tmp_path / preset, preset)
    change(tmp_path / preset / "scheduler" / "scheduler_config.json", scheduler)
    if solver:
        index = tmp_path / preset / "model_index.json"
        change(index, {"presswork": json.loads(index.read_text())["presswork"] | {"sampler": {"solver": solver}}})
    loaded = checkpoint.load(tmp_path / preset)
    work = measure.work_of(loaded, 3)
    stock = Stock(loaded, torch.device("cpu"), torch.float32, compiles=False).render(work)
    pipeline = open_torch(loaded, "cpu", "fp32", (3,), compiles=False, cache=tmp_path)
    ours = np.stack([picture.pixels for picture in pipeline.render(work.batch, lambda step: None)])
    assert ours.std() > 5
    assert int(np.abs(ours.astype(int) - stock.astype(int)).max()) <= 1


def change(file: Path, fields: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_the_benchmark_says_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "engine.json"
    options = ["--preset", "tiny", "--runtime", "torch", "--precision", "fp32", "--batch", "2"]
    assert bench.main([*options, "--rounds", "1", "--device", "cpu", "--json", str(file)]) == 0
    (found,) = json.loads(file.read_text())
    assert found["model"] == "tiny"
    assert 0 < found["unet_flops_saved"] < 1
    names = [one["name"] for one in found["contenders"]]
    assert names == ["stock diffusers eager fp32", "torch fp32"]
    assert set(found["contenders"][1]["ms_a_batch"]) == {"encode_text", "denoise", "decode"}
    printed = capsys.readouterr().out
    assert "torch fp32" in printed and max(map(len, printed.splitlines())) <= 80


def test_a_fraction_is_of_what_stock_diffusers_must_compute_for_an_image(tmp_path: Path):
    make(tmp_path / "tiny", "tiny")
    parts = PRESETS["full"].configs
    full = {name: networks.build(part, parts[part]) for name, part in
            (("unet", FLEXIBLE), ("vae", "vae"), ("text_encoder", "text_encoder"))}  # fmt: skip
    loaded = dataclasses.replace(checkpoint.load(tmp_path / "tiny"), **full)
    costs = measure.counted(loaded, Shape(loaded.revision, 512, 512, 10, guided=True), 2)
    assert measure.useful(costs) / 2 / 1e12 == pytest.approx(13.64, abs=0.005)


def test_parts_that_a_gpu_has_measured_are_not_measured_again(tmp_path: Path):
    (tmp_path / "sweep.json").write_text("[]")
    ran = subprocess.run(
        ["bash", "tests/benchmarks/on_gpu.sh", str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True,
        env=os.environ | {"PARTS": "sweep cold", "PYTHON": "false"}, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.splitlines() == ["sweep: done before", "cold: not finished"]


def test_what_fails_to_start_is_said_and_the_others_are_measured(tmp_path: Path):
    said: list[str] = []
    assert measure.start([Setup(model=str(tmp_path / "nowhere"), batch=1)], said.append) == []
    (line,) = said
    assert "before it answered" in line


def test_a_model_that_is_not_there_is_a_sentence_and_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert bench.main(["--model", str(tmp_path / "nowhere")]) == 1
    assert "neither a directory" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
