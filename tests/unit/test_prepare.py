"""What a shape needs is compiled when it is prepared, a render under the watchdog compiles nothing, and a shape that is
forgotten leaves nothing behind."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.core.model.specs import Spec
from worker.model import checkpoint
from worker.model.make import make
from worker.pipeline import Batch, InvalidOutput, Picture, reproducibility_class
from worker.pipelines.diffusion import DiffusionPipeline
from worker.pipelines.torch_compiled import open_torch


class Graph:
    """What Dynamo found, run as it is."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        self._graph = graph

    def __call__(self, *arguments: Any) -> Any:
        return self._graph(*arguments)


@pytest.fixture
def graphs() -> list["weakref.ref[Graph]"]:
    return []


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: list["weakref.ref[Graph]"]) -> DiffusionPipeline:
    """As on CUDA, but what Dynamo finds is counted instead of compiled."""
    make(tmp_path / "tiny")
    torch._dynamo.reset()

    def count(graph: torch.fx.GraphModule, _inputs: object, **_options: object) -> Graph:
        made = Graph(graph)
        graphs.append(weakref.ref(made))
        return made

    opened = open_torch(checkpoint.load(tmp_path / "tiny"), "cpu", "fp32", (2,), compiles=False, cache=tmp_path)
    changes = {"_one_at_a_time": False, "_compiles": True, "_compiler": count, "warmup_runs": 2}
    for name, value in changes.items():
        monkeypatch.setattr(opened._backend, name, value)
    return opened


def batch(pipeline: DiffusionPipeline, side: int = 64, guidance_scale: float = 7.5) -> Batch:
    specs = tuple(Spec(pipeline.card.revision, "a mug", "", n, side, side, 4, guidance_scale) for n in range(2))
    return Batch(specs[0].shape, specs, 2)


def nothing(_step: int) -> None:
    pass


@pytest.mark.parametrize("guidance_scale", [7.5, pytest.param(1.0, marks=pytest.mark.chaos)])
def test_nothing_is_compiled_in_a_render_after_its_shape_was_prepared(
    pipeline: DiffusionPipeline, graphs: list[Any], guidance_scale: float
):
    asked = batch(pipeline, guidance_scale=guidance_scale)
    pipeline.prepare(asked.shape, 2)
    before = len(graphs)
    assert before >= 3
    pipeline.render(asked, nothing)
    pipeline.render(Batch(asked.shape, asked.specs[::-1], 2), nothing)
    assert len(graphs) == before


def test_a_forgotten_shape_leaves_nothing_compiled_and_others_keep_theirs(
    pipeline: DiffusionPipeline, graphs: list["weakref.ref[Graph]"]
):
    backend, latents = pipeline._backend, torch.zeros(2, 4, 4, 4)
    kept, dropped = batch(pipeline).shape, batch(pipeline, side=128).shape
    backend.compiled(kept, 2).decode(latents)
    backend.compiled(dropped, 2).decode(latents)
    assert len(graphs) == 2
    backend.forget(dropped, 2)
    gc.collect()
    assert [graph() is not None for graph in graphs] == [True, False]
    backend.compiled(kept, 2).decode(latents)
    assert len(graphs) == 2
    pipeline.close()
    gc.collect()
    assert not any(graph() for graph in graphs)


def test_an_image_that_half_precision_cannot_decode_is_decoded_in_float32_and_says_so(tmp_path: Path):
    """Latents are too large for half precision inside the decoder, for which this CPU stands in."""

    def opened(gain: float) -> DiffusionPipeline:
        loaded = checkpoint.load(tmp_path / "tiny")
        loaded.vae.decoder.conv_in.weight.mul_(gain)
        return open_torch(loaded, "cpu", "fp32", (2,), compiles=False, cache=tmp_path)

    def render(pipeline: DiffusionPipeline) -> list[Picture | InvalidOutput]:
        return list(pipeline.render(asked, nothing))

    def halved(pipeline: DiffusionPipeline) -> DiffusionPipeline:
        backend: Any = pipeline._backend
        backend._decoder, backend._decodes_exactly = backend._decoder.half(), False
        return pipeline

    make(tmp_path / "tiny")
    exact, usual, overflowing = opened(1e5), halved(opened(1.0)), halved(opened(1e5 / 2))
    asked = batch(exact)
    overflowing._backend._decoder.decoder.conv_in.weight.mul_(2)  # type: ignore[attr-defined]
    assert [getattr(picture, "decoded_in", None) for picture in render(usual)] == ["", ""]
    found, right = render(overflowing), render(exact)
    for one, other in zip(found, right, strict=True):
        assert isinstance(one, Picture) and isinstance(other, Picture)
        assert (one.decoded_in, other.decoded_in) == ("fp32", "")
        assert int(np.abs(one.pixels.astype(int) - other.pixels.astype(int)).max()) <= 1
        assert "/fp32+fp32-decoder/" in reproducibility_class(overflowing, 2, one.decoded_in)
    compiled: Any = overflowing._backend.compiled(asked.shape, 2)
    compiled._exact_decoder = None  # as where a decoder has the range already
    assert render(overflowing) == [InvalidOutput()] * 2
