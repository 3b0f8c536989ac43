"""The exported graphs compute what the networks do, under names that stay, from one file of weights."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript")

import onnx
import onnxruntime

from services.core import logs
from worker.model import checkpoint, directory, make
from worker.model.checkpoint import Checkpoint
from worker.model.export import WEIGHTS, Exporter
from worker.model.exported import Exported
from worker.model.stages import Decoder, Denoiser, TextEncoder, TimeEmbedder

BATCH, SIDE = 2, 8
GRAPHS = ("text", "time", "denoiser", "decoder")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"  # the contract suite exports the flexible U-Net
    make.make(folder, "tiny-sd")
    return checkpoint.load(folder)


@pytest.fixture(scope="module")
def exporter(model: Checkpoint) -> Exporter:
    return Exporter(model)


@pytest.fixture(scope="module")
def exported(exporter: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    exporter.write_weights(folder / WEIGHTS)
    exporter.write_text(folder / "text.onnx", BATCH)
    exporter.write_time(folder / "time.onnx")
    exporter.write_denoiser(folder / "denoiser.onnx", BATCH, SIDE, SIDE, guided=True)
    exporter.write_decoder(folder / "decoder.onnx", BATCH, SIDE, SIDE)
    return folder


def run(file: Path, *given: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})


def assert_near(found: list[np.ndarray], wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert np.linalg.norm(one - other.numpy()) <= 1e-5 * np.linalg.norm(other.numpy())


@torch.no_grad()
def test_each_graph_computes_what_its_network_does(model: Checkpoint, exporter: Exporter, exported: Path):
    chance = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 200, (BATCH, exporter.prompts.length), generator=chance)
    latents = torch.randn(BATCH, 4, SIDE, SIDE, generator=chance)
    text = TextEncoder(model.text_encoder, model.unet)(tokens)
    time = TimeEmbedder(model.unet)(torch.tensor([548.0]))
    pairs = [torch.cat([array.flip(0), array]) for array in text]
    assert_near(run(exported / "text.onnx", tokens), text)
    assert_near(run(exported / "time.onnx", torch.tensor([548.0])), [time])
    predicted = Denoiser(model.unet)(latents, time, pairs)
    assert_near(run(exported / "denoiser.onnx", latents, time, *pairs), [predicted])
    latents[1, 0, 0, 0] = torch.nan
    pixels, finite = Decoder(model.vae)(latents)
    found, flags = run(exported / "decoder.onnx", latents)
    assert np.abs(found.astype(int) - pixels.numpy().astype(int)).max() <= 1
    assert flags.tolist() == finite.tolist() == [True, False]


@pytest.mark.chaos  # another export of the U-Net: it takes long
@torch.no_grad()
def test_a_denoiser_reads_the_chunks_of_long_prompts(model: Checkpoint, exporter: Exporter, tmp_path: Path):
    exporter.write_weights(tmp_path / WEIGHTS)
    exporter.write_denoiser(tmp_path / "long.onnx", 1, SIDE, SIDE, guided=False, chunks=3)
    chunks = [
        TextEncoder(model.text_encoder, model.unet)(torch.full((1, exporter.prompts.length), n)) for n in (5, 6, 7)
    ]
    text = [torch.cat(arrays, dim=2) for arrays in zip(*chunks, strict=True)]
    latents, time = torch.randn(1, 4, SIDE, SIDE), TimeEmbedder(model.unet)(torch.tensor([548.0]))
    assert_near(run(tmp_path / "long.onnx", latents, time, *text), [Denoiser(model.unet)(latents, time, text)])


def test_an_export_says_nothing_in_a_log_or_outside_it(exporter: Exporter, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(logging.root, "handlers", [])
    logs.configure("worker")
    exporter.write_weights(tmp_path / WEIGHTS)
    exporter.write_time(tmp_path / "time.onnx")
    assert capfd.readouterr() == ("", "")


def test_names_and_shapes_are_fixed(model: Checkpoint, exported: Path):
    graphs = {name: onnx.load(exported / f"{name}.onnx", load_external_data=False).graph for name in GRAPHS}
    count = len(model.unet.project_text(torch.zeros(1, 1, model.unet.text_width)))
    text = [f"{kind}_{n}" for n in range(count // 2) for kind in ("key", "value")]
    assert [[entry.name for entry in graph.input] for graph in graphs.values()] == [
        ["tokens"], ["timesteps"], ["latents", "time", *text], ["latents"],
    ]  # fmt: skip
    assert [[entry.name for entry in graph.output] for graph in graphs.values()] == [
        text, ["time"], ["noise_pred"], ["pixels", "finite"],
    ]  # fmt: skip
    for graph in graphs.values():
        for entry in (*graph.input, *graph.output):
            assert all(side.HasField("dim_value") for side in entry.type.tensor_type.shape.dim)


def test_all_graphs_share_one_file_of_weights(exported: Path):
    stored = 0
    for name in GRAPHS:
        graph = onnx.load(exported / f"{name}.onnx", load_external_data=False).graph
        for tensor in graph.initializer:
            if tensor.external_data:
                assert {"location": WEIGHTS}.items() <= {
                    entry.key: entry.value for entry in tensor.external_data
                }.items()
            else:
                stored += int(np.prod(tensor.dims))
    assert stored < 20_000  # the causal mask, shapes and scalars; of the weights none
    assert {file.name for file in exported.iterdir()} == {WEIGHTS, *(f"{name}.onnx" for name in GRAPHS)}


def test_a_graph_says_nothing_of_the_machine_that_wrote_it(exported: Path):
    for name in GRAPHS:
        assert str(Path(__file__).parents[2]).encode() not in (exported / f"{name}.onnx").read_bytes()


def test_how_a_model_is_sampled_is_read_at_each_start_and_never_from_the_cache(model: Checkpoint, tmp_path: Path):
    started = Exported(model.folder, tmp_path)
    assert started.sampler_config == directory.read_sampler_config(model.folder) == model.sampler_config
    (facts,) = tmp_path.glob("*/*/facts-model.json")
    assert set(json.loads(facts.read_text())) == {"prompts", "latent_channels"}
