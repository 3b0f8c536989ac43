"""What a shape needs is compiled when it is prepared: a render under the watchdog compiles nothing."""

from pathlib import Path

import pytest
import torch

from services.core.model.specs import Shape, Spec
from worker.model import checkpoint
from worker.model.make import make
from worker.pipeline import Batch
from worker.pipelines.torch_compiled import open_torch


@pytest.mark.parametrize("guidance_scale", [7.5, pytest.param(1.0, marks=pytest.mark.chaos)])
def test_nothing_is_compiled_in_a_render_after_its_shape_was_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guidance_scale: float
):
    make(tmp_path / "tiny")
    torch._dynamo.reset()
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, _inputs: object) -> object:
        compiled.append(1)
        return graph

    pipeline = open_torch(checkpoint.load(tmp_path / "tiny"), "cpu", "fp32", (2,), compiles=False, cache=tmp_path)
    backend = pipeline._backend
    monkeypatch.setattr(backend, "_one_at_a_time", False)
    monkeypatch.setattr(backend, "warmup_runs", 2)
    monkeypatch.setattr(
        backend,
        "_compile",
        lambda network, _batch: torch.compile(network, backend=count, dynamic=False, fullgraph=True),
    )
    specs = tuple(Spec(pipeline.card.revision, "a mug", "", n, 64, 64, 4, guidance_scale) for n in range(2))
    shape: Shape = specs[0].shape
    pipeline.prepare(shape, 2)
    before = len(compiled)
    assert before >= 3
    pipeline.render(Batch(shape, specs, 2), lambda step: None)
    pipeline.render(Batch(shape, specs[::-1], 2), lambda step: None)
    assert len(compiled) == before
