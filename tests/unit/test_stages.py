"""Each network is one graph for torch's compiler, compiled once for a shape: nothing in it goes back to Python."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from worker.model import checkpoint, make
from worker.model.checkpoint import Checkpoint
from worker.model.stages import Decoder, Denoiser, TextEncoder, TimeEmbedder

BATCH, SIDE = 2, 8
Given = Callable[[], tuple[Any, ...]]


@pytest.fixture(scope="module", params=["tiny", "tiny-sd"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("models") / request.param
    make.make(folder, request.param)
    return checkpoint.load(folder)


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def stages(model: Checkpoint) -> dict[str, tuple[nn.Module, Given]]:
    """Each network, and what makes new inputs of its shapes."""
    encode, embed = TextEncoder(model.text_encoder, model.unet), TimeEmbedder(model.unet)

    def tokens(rows: int) -> Tensor:
        return torch.randint(0, 200, (rows, model.max_tokens))

    def latents() -> Tensor:
        return torch.randn(BATCH, model.unet.latent_channels, SIDE, SIDE)

    def denoised(rows: int) -> tuple[Any, ...]:
        return latents(), embed(torch.rand(1) * 999), encode(tokens(rows))

    return {
        "text": (encode, lambda: (tokens(BATCH),)),
        "denoiser": (Denoiser(model.unet), lambda: denoised(BATCH)),
        "denoiser, guided": (Denoiser(model.unet), lambda: denoised(2 * BATCH)),
        "decoder": (Decoder(model.vae), lambda: (latents(),)),
    }


@pytest.mark.parametrize(
    "name", ["text", pytest.param("denoiser", marks=pytest.mark.chaos), "denoiser, guided", "decoder"]
)
def test_a_network_is_one_graph_and_compiled_once_for_its_shape(model: Checkpoint, name: str):
    network, given = stages(model)[name]
    counter = CompileCounter()
    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=False)
    with torch.inference_mode():
        for _ in range(3):
            arguments = given()
            torch.testing.assert_close(compiled(*arguments), network(*arguments))
    assert counter.frame_count == 1
