"""Graphs for accelerators compute what the networks do, in operators and numbers that such a device has."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")

import onnx
import onnx_ir
import onnxruntime

from services.core.model.errors import SettingsError
from tests.processes import take_interrupts
from tests.waiting import until
from worker.model import __main__ as command
from worker.model import checkpoint, directory, make, static_export, static_graphs, static_rules
from worker.model.checkpoint import Checkpoint
from worker.model.drafts import FolderTaken
from worker.model.latent_scale import LatentScale
from worker.model.stages import Decoder, Encoder
from worker.model.static_graphs import Clipped, Exported
from worker.model.static_stages import ImageDecoder, ImageEncoder, TextDenoiser

FP32_ERROR = 1e-4  # the largest difference
FP16_ERROR = 5e-3  # of the numbers' norm
ROOT = Path(__file__).parents[2]
MINI = directory.locate(directory.SHIPPED)
Open = Callable[..., Exported]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for preset in ("tiny", "tiny-sd"):
        make.make(folder / preset, preset)
    return folder


@pytest.fixture(scope="module")
def tiny_sd(models: Path) -> Path:
    return models / "tiny-sd"


@pytest.fixture(scope="module")
def exported(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("exported") / "out"
    return static_export.export(tiny_sd, out, size=(64, 64), batches=[1], precision="fp32")


def run(exported: Exported, network: str, *given: torch.Tensor, chunks: int = 1) -> np.ndarray:
    batch = len(given[0]) // (2 if network == "unet" else 1)
    graph = exported.graph(network, batch, chunks)
    session = onnxruntime.InferenceSession(exported.path(graph), providers=["CPUExecutionProvider"])
    fed = {to.name: one.numpy().astype(to.dtype) for to, one in zip(graph.inputs, given, strict=True)}
    (found,) = session.run([graph.outputs[0].name], fed)
    assert (found.dtype, found.shape) == (graph.outputs[0].dtype, graph.outputs[0].shape)
    return found


@torch.no_grad()
def errors(exported: Exported, model: Checkpoint, batch: int, chunks: int = 1) -> dict[str, tuple[float, float]]:
    """For each network the largest difference from torch in float32, and the norm of all relative to the numbers'."""
    chance = torch.Generator().manual_seed(batch)
    width, height = exported.size
    tokens = exported.prompts().length
    input_ids = torch.randint(0, 200, (batch, tokens), generator=chance)
    latents = torch.randn(2 * batch, exported.latent_channels, height // 8, width // 8, generator=chance)
    timestep = torch.full((2 * batch,), 998.0)
    states = model.text_encoder(input_ids=input_ids).last_hidden_state
    text = torch.cat([states.flip(1), states])
    text = torch.cat([text.roll(n, 1) for n in range(chunks)], 1)
    images = model.vae.decode(latents[:batch] * 4.0).sample
    pairs = {
        "text_encoder": (run(exported, "text_encoder", input_ids), states),
        "unet": (run(exported, "unet", latents, timestep, text, chunks=chunks), model.unet(latents, timestep, text)),
        "vae_decoder": (run(exported, "vae_decoder", latents[:batch] * 4.0), images),
    }
    if any(graph.network == "vae_encoder" for graph in exported.graphs):
        image = images[:1].clamp(-1.0, 1.0)
        pairs["vae_encoder"] = run(exported, "vae_encoder", image), model.vae.quant_conv(model.vae.encoder(image))
    found = {}
    for name, (one, other) in pairs.items():
        difference = one.astype(np.float64) - other.numpy()
        found[name] = float(np.abs(difference).max()), float(np.linalg.norm(difference) / np.linalg.norm(other.numpy()))
    return found


def test_each_graph_computes_what_its_network_does(exported: Exported, tiny_sd: Path):
    found = errors(exported, checkpoint.load(tiny_sd), 1)
    assert set(found) == {"text_encoder", "unet", "vae_decoder"}
    assert all(largest <= FP32_ERROR for largest, _ in found.values()), found


@pytest.mark.chaos  # each exports the U-Net two to four times
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["tiny", "tiny-sd", "mini"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_of_every_batch_and_both_precisions_compute_what_the_networks_do(
    models: Path, tmp_path: Path, model: str, precision: str
):
    folder = MINI if model == "mini" else models / model
    size = directory.read_index(folder).default_size
    out = static_export.export(
        folder, tmp_path / "out", size=size, batches=[2, 1], precision=precision, image_to_image=True
    )
    assert out.batches == (1, 2) and out.clipped == ()
    for batch in out.batches:
        found = errors(out, checkpoint.load(folder), batch)
        print(model, precision, batch, found)
        if precision == "fp32":
            assert all(largest <= FP32_ERROR for largest, _ in found.values()), found
        assert all(relative <= FP16_ERROR for _, relative in found.values()), found
    assert_plain(out)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_u_net_reads_the_chunks_of_long_prompts(tiny_sd: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_sd, tmp_path / "model"))
    index = directory.read_object(folder / "model_index.json")
    index["presswork"]["long_prompts"] = True
    (folder / "model_index.json").write_text(json.dumps(index))
    out = static_export.export(folder, tmp_path / "out", size=(64, 128), batches=[1], precision="fp32", chunks=[3, 1])
    assert [graph.file for graph in out.graphs if graph.network == "unet"] == ["unet-1.onnx", "unet-1-3-chunks.onnx"]
    for chunks in (1, 3):
        assert errors(out, checkpoint.load(folder), 1, chunks)["unet"][0] <= FP32_ERROR


def assert_plain(exported: Exported) -> None:
    """Nothing in the graphs that accelerators cannot do, and no number that FP16 cannot hold."""
    for graph in exported.graphs:
        loaded = onnx.load(exported.path(graph))
        assert loaded.opset_import[0].version == 18 == exported.opset
        assert not {node.op_type for node in loaded.graph.node} & static_rules.REFUSED_OPERATORS.keys()
        assert {node.domain for node in loaded.graph.node} <= {"", "ai.onnx"}
        for tensor in loaded.graph.initializer:
            numbers = onnx.numpy_helper.to_array(tensor)
            assert numbers.dtype.kind != "f" or np.abs(numbers).max(initial=0.0) <= static_rules.FP16_MAX
        for value in (*loaded.graph.input, *loaded.graph.output):
            assert all(side.dim_value > 0 for side in value.type.tensor_type.shape.dim)


def test_no_graph_has_what_recipes_patch_away_or_numbers_outside_fp16(exported: Exported):
    assert_plain(exported)
    assert exported.clipped == ()
    made = onnx.load(exported.path(exported.graph("unet", 1)))
    assert "InstanceNormalization" in {node.op_type for node in made.graph.node}
    mask = [
        one
        for one in onnx.load(exported.path(exported.graph("text_encoder", 1))).graph.initializer
        if one.name == "mask"
    ]
    assert set(np.unique(onnx.numpy_helper.to_array(mask[0]))) == {-10000.0, 0.0}


def test_the_manifest_says_what_the_files_are(exported: Exported, tiny_sd: Path):
    said = json.loads((exported.folder / "manifest.json").read_text())
    assert (said["format"], said["revision"], said["size"]) == (1, directory.revision(tiny_sd), [64, 64])
    assert (said["batches"], said["precision"], said["opset"], said["clipped"]) == ([1], "fp32", 18, [])
    shapes = {
        graph["network"]: {one["name"]: (one["dtype"], one["shape"]) for one in graph["inputs"] + graph["outputs"]}
        for graph in said["graphs"]
    }
    latents, states = ("float32", [2, 4, 8, 8]), ("float32", [2, 77, 32])
    assert shapes == {
        "text_encoder": {"input_ids": ("int64", [1, 77]), "text_states": ("float32", [1, 77, 32])},
        "unet": {"latents": latents, "timestep": ("float32", [2]), "text_states": states, "noise_pred": latents},
        "vae_decoder": {"latents": ("float32", [1, 4, 8, 8]), "image": ("float32", [1, 3, 64, 64])},
    }
    assert {file.name for file in exported.folder.iterdir()} == {"manifest.json", *exported.files}
    assert {graph.weights for graph in exported.graphs} <= exported.files.keys()
    assert str(ROOT).encode() not in exported.path(exported.graph("unet", 1)).read_bytes()
    assert exported == static_graphs.read(exported.folder)
    assert static_graphs.damaged(exported) == []
    with pytest.raises(SettingsError, match="has no unet for batches of 4\\."):
        exported.graph("unet", 4)


def test_a_damaged_export_is_named(exported: Exported, tmp_path: Path):
    copy = Path(shutil.copytree(exported.folder, tmp_path / "copy"))
    weights = bytearray((copy / "unet.bin").read_bytes())
    weights[100] ^= 1
    (copy / "unet.bin").write_bytes(weights)
    assert static_graphs.damaged(static_graphs.read(copy)) == ["unet.bin"]
    (copy / "unet.bin").write_bytes(weights[:-1])
    with pytest.raises(SettingsError, match=r"unet\.bin has another size"):
        static_graphs.read(copy)
    (copy / "unet.bin").unlink()
    with pytest.raises(SettingsError, match=r"no whole export in .*: unet\.bin is missing"):
        static_graphs.read(copy)
    for text, sentence in (
        ("{", "cannot be read"),
        ('{"format": 1}', "cannot be read"),
        ('{"format": 9}', "another version"),
    ):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(SettingsError, match=sentence):
            static_graphs.read(copy)
    with pytest.raises(SettingsError, match="no whole export"):
        static_graphs.read(tmp_path)


@pytest.mark.parametrize("operator", static_rules.REFUSED_OPERATORS)
def test_a_graph_with_a_refused_operator_is_named(operator: str):
    node = onnx_ir.node(operator, [onnx_ir.val("x", onnx_ir.DataType.FLOAT, (1,))])
    with pytest.raises(SettingsError, match=rf"unet cannot be exported: it needs {operator} \("):
        static_rules.check("unet", onnx_ir.Graph([], [], nodes=[node]))


def test_constants_outside_fp16_are_clipped_and_said():
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[7e4, -1e9], [1.0, -65504.0]]))
    assert static_rules.clip_weights("unet", network) == [Clipped("unet", "weight", 2, pytest.approx(1e9))]
    assert network.weight.tolist() == [[65504.0, -65504.0], [1.0, -65504.0]]
    large = onnx_ir.tensor(np.array([-3.4e38, 5.0, np.inf], np.float32), name="mask")
    kept = onnx_ir.tensor(np.array([2**40], np.int64), name="count")
    values = [onnx_ir.Value(name=one.name, const_value=one) for one in (large, kept)]
    graph = onnx_ir.Graph([], [], nodes=[], initializers=values)
    assert static_rules.clip_constants("unet", graph) == [Clipped("unet", "mask", 2, float("inf"))]
    assert graph.initializers["mask"].const_value.numpy().tolist() == [-65504.0, 5.0, 65504.0]
    assert graph.initializers["count"].const_value.numpy().tolist() == [2**40]


@torch.no_grad()
def test_timesteps_are_looked_up_because_half_precision_cannot_hold_their_angles(models: Path):
    unet = checkpoint.load(models / "tiny").unet
    timesteps = torch.arange(1000.0)
    exact = unet.time_proj(timesteps)
    assert torch.equal(TextDenoiser(unet).sinusoids, exact)
    half = TextDenoiser(unet).half().sinusoids.float()
    assert (half - exact).abs().max() < 1e-3
    angles = timesteps.half()[:, None] * torch.exp(-torch.arange(8) / 8 * np.log(10000.0)).half()
    assert (torch.cos(angles.float()) - exact[:, :8]).abs().max() > 0.1  # what the table is for


@torch.no_grad()
@pytest.mark.parametrize(
    "scale",
    [(0.18215, 0.0, None, None), (0.36, 0.12, None, None), (1.5, None, [0.1, -0.2, 0.3, 0.4], [1.1, 0.9, 2.0, 0.5])],
)
def test_the_host_scales_latents_as_the_other_backends_do(tiny_sd: Path, scale: Any):
    vae = checkpoint.load(tiny_sd).vae
    fields = dict(zip(("scaling_factor", "shift_factor", "latents_mean", "latents_std"), scale, strict=True))
    config = SimpleNamespace(latent_channels=4, get=fields.get)
    parts = SimpleNamespace(
        decoder=vae.decoder, post_quant_conv=vae.post_quant_conv, encoder=vae.encoder, quant_conv=vae.quant_conv,
        config=config,
    )  # fmt: skip
    host = LatentScale(scale[0], scale[1] or 0.0, tuple(scale[2] or ()), tuple(scale[3] or ()))
    latents = torch.randn(2, 4, 8, 8)
    image = ImageDecoder(parts)(torch.from_numpy(host.for_decoder(latents.numpy())))
    pixels, _ = Decoder(parts)(latents)
    finished = (image * 127.5 + 127.5).clamp(0.0, 255.0).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert (finished.int() - pixels.int()).abs().max() <= 1
    wanted = Encoder(parts)(pixels)
    moments = ImageEncoder(parts)(pixels.permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0)
    for found, one in zip(host.of_moments(moments.numpy()), wanted, strict=True):
        np.testing.assert_allclose(found, one.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"size": (64, 65)}, "The size is 64x65, but the sides of tiny-sd's pictures are multiples of 16."),
        ({"size": (0, 64)}, "The size is 0x64"),
        ({"batches": [0]}, "Batches are numbers of images from 1 to 64, such as 1,4."),
        ({"batches": [65]}, "Batches are numbers of images from 1 to 64"),
        ({"batches": []}, "Batches are numbers of images from 1 to 64"),
        ({"precision": "int4"}, "The precision is 'int4'; it can be fp32 or fp16."),
        ({"chunks": [2]}, 'Prompts of tiny-sd have one chunk, since its model_index.json has no "long_prompts".'),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    tiny_sd: Path, tmp_path: Path, given: dict[str, Any], sentence: str
):
    usual: dict[str, Any] = {"size": (64, 64), "batches": [1], "precision": "fp32"}
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        static_export.export(tiny_sd, tmp_path / "out", **usual | given)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused_and_leave_nothing(tiny_sd: Path, tmp_path: Path, monkeypatch):
    model = checkpoint.load(tiny_sd)
    model.text_encoder.final_layer_norm.bias[0] = torch.nan
    monkeypatch.setattr(checkpoint, "load", lambda _: model)
    with pytest.raises(SettingsError, match=r"text_encoder has NaN .*final_layer_norm\.bias for one"):
        static_export.export(tiny_sd, tmp_path / "out", size=(64, 64), batches=[1], precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_taken_or_cannot_be_written_is_named(tiny_sd: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    usual: dict[str, Any] = {"size": (64, 64), "batches": [1], "precision": "fp32"}
    with pytest.raises(FolderTaken, match="out is not empty; the export needs an empty directory"):
        static_export.export(tiny_sd, tmp_path / "out", **usual)
    with pytest.raises(SettingsError, match=r"The export cannot be written to .*: (Not a directory|File exists)\."):
        static_export.export(tiny_sd, tmp_path / "out" / "mine" / "below", **usual)


def test_an_interrupted_export_leaves_nothing(tiny_sd: Path, tmp_path: Path):
    def interrupt(line: str) -> None:
        if line == "text_encoder-1.onnx: exporting":
            assert (tmp_path / ".out.draft" / "text_encoder.bin").exists() and not (tmp_path / "out").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        static_export.export(tiny_sd, tmp_path / "out", size=(64, 64), batches=[1], precision="fp32", say=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--batch 1,x", "--batch is '1,x'; it must be whole numbers with commas between them, such as 1,4."),
        ("--size 512", "--size is '512'; it must be one size in pixels, such as 512x512."),
        ("--size 64x64,64x64,128x64", "--size is '64x64,64x64,128x64'; it must be one size"),
        ("--chunks ,", "--chunks is ','; it must be whole numbers"),
        ("--precision bf16", "The precision is 'bf16'; it can be fp32 or fp16."),
        ("--batch 1,100000", "Batches are numbers of images from 1 to 64"),
    ],
)
def test_the_command_refuses_in_one_sentence(tiny_sd: Path, tmp_path: Path, capsys, words: str, sentence: str):
    assert command.main(["export", str(tiny_sd), "-o", str(tmp_path / "out"), *words.split()]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1) and said.err.startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_was_clipped(exported: Exported):
    cut = replace(exported, batches=(1, 4), clipped=(Clipped("unet", "conv_in.weight", 3, 7e4),))
    assert cut.table().splitlines()[1:] == [
        "64x64, batches of 1 and 4, fp32, opset 18",
        "clipped to FP16's range: 3 numbers of unet's conv_in.weight, up to 7e+04",
    ]


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGINT])
def test_an_export_that_is_interrupted_shows_nothing_and_the_next_one_tidies_up(
    tiny_sd: Path, tmp_path: Path, ends: signal.Signals
):
    words = [sys.executable, "-m", "services.cli", "ai100", "export", str(tiny_sd), "-o", str(tmp_path / "out")]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=take_interrupts,  # noqa: PLW1509
        )
    draft = tmp_path / ".out.draft"
    until((draft / "text_encoder-1.onnx").exists, seconds=200)
    os.killpg(process.pid, ends)
    code = process.wait(100)
    assert not (tmp_path / "out").exists()
    if ends == signal.SIGINT:
        assert code == 130 and (tmp_path / "said").read_text().splitlines()[-1] == "stopped"
    else:
        assert draft.exists()
    done = subprocess.run([*words, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert static_graphs.damaged(static_graphs.read(tmp_path / "out")) == [] and told["batches"] == [1]
    assert not draft.exists()
