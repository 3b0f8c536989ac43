"""GEGLU by a kernel of our own gives what torch's gives, more exactly in half precision, whatever rows are beside."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch.nn import functional as F  # noqa: N812  the usual alias

from worker.model import checkpoint, geglu
from worker.model.geglu import KernelGEGLU, on_cuda, use_in
from worker.model.make import make
from worker.model.stages import Denoiser

ROOT = Path(__file__).parents[2]
# (rows, inputs, width): the U-Net's, with few rows; ones that fill no tile; more tiles of rows than share columns
SHAPES = [(130, 320, 1280), (70, 40, 72), (1100, 32, 40)]


def cases(device: str, dtypes: Sequence[torch.dtype]) -> Iterator[tuple[torch.Tensor, GEGLU]]:
    torch.manual_seed(7)
    for rows, inputs, width in SHAPES:
        for dtype in dtypes:
            layer = GEGLU(inputs, width).to(device, dtype).requires_grad_(False)
            yield torch.randn(1, rows, inputs).mul(2).to(device, dtype), layer


def errors(found: torch.Tensor, x: torch.Tensor, layer: GEGLU) -> tuple[float, float]:
    """The largest errors against float64: of `found`, and of torch in x's dtype or of rounding to it."""
    hidden, gate = F.linear(x.double(), layer.proj.weight.double(), layer.proj.bias.double()).chunk(2, dim=-1)
    exact = hidden * F.gelu(gate)
    stock = GEGLU.forward(layer, x)
    rounding = torch.finfo(x.dtype).eps * float(exact.abs().max())
    return float((found.double() - exact).abs().max()), max(float((stock.double() - exact).abs().max()), rounding)


def test_in_a_network_it_gives_what_torch_gives():
    for x, layer in cases("cpu", [torch.float32, torch.bfloat16, torch.float16]):
        use_in(torch.nn.ModuleList([layer]))
        assert isinstance(layer, KernelGEGLU)
        ours, theirs = errors(layer(x), x, layer)
        assert ours <= theirs


def check_kernel(device: str) -> None:
    """The kernel's results: exact to the dtype, and a row's the same wherever it is and whatever the others."""
    on_gpu = device == "cuda"
    for x, layer in cases(device, [torch.float16, torch.bfloat16, torch.float32] if on_gpu else [torch.float16]):
        found = on_cuda(x, layer.proj.weight, layer.proj.bias)
        ours, theirs = errors(found, x, layer)
        assert ours <= theirs, (x.shape, x.dtype)
        few = on_cuda(x[:, 5:26], layer.proj.weight, layer.proj.bias)
        assert torch.equal(few[0], found[0, 5:26]), (x.shape, x.dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_kernel_on_a_gpu_cuda():
    check_kernel("cuda")


@pytest.mark.timeout(600)
def test_the_kernel_in_tritons_interpreter():
    pytest.importorskip("triton", reason="torch for a CPU brings no Triton; `make kernels` runs this")
    # The interpreter multiplies with numpy, and some BLAS sum a row otherwise at the edge of a matrix: einsum does not.
    sums = (
        "numpy.matmul = lambda a, b, dtype=None: numpy.einsum('...mk,...kn->...mn', a, b, dtype=dtype, optimize=False)"
    )
    code = f"import sys, numpy; {sums}; sys.path.insert(0, sys.argv[1]); import test_geglu as t; t.check_kernel('cpu')"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], env=environment, check=True)


def test_a_u_net_predicts_the_same_with_it(tmp_path: Path):
    make(tmp_path / "tiny", "tiny")

    def predict(*, kernel: bool) -> torch.Tensor:
        unet = checkpoint.load(tmp_path / "tiny").unet
        if kernel:
            use_in(unet)
            assert not [module for module in unet.modules() if type(module) is GEGLU]
        torch.manual_seed(0)
        latents, time = torch.randn(2, 4, 8, 8), unet.embed_time(torch.tensor([500.0]))
        text = unet.project_text(torch.randn(4, 8, unet.text_width))
        with torch.inference_mode():
            return Denoiser(unet)(latents, time, text)

    torch.testing.assert_close(predict(kernel=True), predict(kernel=False), atol=1e-4, rtol=1e-4)


def test_what_a_program_holds_fits_a_multiprocessor():
    at_once = (geglu.ROWS + 2 * geglu.COLUMNS) * geglu.AT_ONCE * 2 * geglu.STAGES
    assert at_once <= 227 * 1024  # bytes of shared memory on sm_90
