"""Group norms by kernels of our own give what torch's give, more exactly in half precision."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the usual alias

from worker.model import checkpoint
from worker.model.group_norm import KernelGroupNorm, on_cuda, part_of, use_in
from worker.model.kernel_norms import use_kernel_norms
from worker.model.make import make
from worker.model.stages import Decoder, Denoiser

# (channels, height, width): the widths of the U-Net and the decoder; one whose pixels are odd; one of few channels
SHAPES = [(320, 8, 8), (960, 8, 4), (128, 16, 24), (640, 3, 7), (96, 8, 24)]
ROOT = Path(__file__).parents[2]


def norm(channels: int, dtype: torch.dtype) -> nn.GroupNorm:
    made = nn.GroupNorm(32, channels, dtype=dtype).requires_grad_(False)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made


def cases(device: str, dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16)):
    torch.manual_seed(7)
    for channels, height, width in SHAPES:
        for dtype in dtypes:
            x = torch.randn(3, channels, height, width) * 2 + 5
            x = x.to(device, dtype, memory_format=torch.channels_last)
            shifts = [None, torch.randn(3, channels), torch.randn(1, 2 * channels)[:, channels:]]
            for shift in shifts:
                yield x, norm(channels, dtype).to(device), None if shift is None else shift.to(device, dtype)


def errors(found: torch.Tensor, x: torch.Tensor, by: nn.GroupNorm, shift: torch.Tensor | None) -> tuple[float, float]:
    """The largest errors against float64: of `found`, and of torch in x's dtype or of rounding to it."""
    added = 0.0 if shift is None else shift[:, :, None, None]
    exact = F.silu(F.group_norm(x.double() + added, 32, by.weight.double(), by.bias.double(), by.eps))
    stock = F.silu(F.group_norm(x + added, 32, by.weight, by.bias, by.eps))
    rounding = torch.finfo(x.dtype).eps * float(exact.abs().max())
    return float((found.double() - exact).abs().max()), max(float((stock.double() - exact).abs().max()), rounding)


def test_in_a_network_it_gives_what_torch_gives():
    for x, stock, shift in cases("cpu"):
        by = nn.ModuleList([stock])
        use_in(by)
        assert isinstance(stock, KernelGroupNorm)
        ours, theirs = errors(stock.silu(x, shift), x, stock, shift)
        assert ours <= theirs
        flat = x.flatten(2)  # as the decoder's attention gives it
        assert torch.equal(stock(flat), F.group_norm(flat, 32, stock.weight, stock.bias, stock.eps))


def check_kernels(device: str) -> None:
    """The kernels' results: exact to the dtype, and an image's the same in every batch and slot."""
    on_gpu = device == "cuda"
    every = list(cases(device) if on_gpu else cases(device, [torch.float16]))
    for x, by, shift in every if on_gpu else every[1:9]:  # the interpreter is slow
        for silu in (True, False) if on_gpu else (True,):
            found = on_cuda(x, by.weight, by.bias, shift, 32, by.eps, silu)
            if silu:
                ours, theirs = errors(found, x, by, shift)
                assert ours <= theirs, (x.shape, x.dtype)
            one = None if shift is None else shift[-1:]
            alone = on_cuda(x[2:], by.weight, by.bias, one, 32, by.eps, silu)
            assert torch.equal(alone[0], found[2]), (x.shape, x.dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_kernels_on_a_gpu_cuda():
    check_kernels("cuda")


@pytest.mark.timeout(600)
def test_the_kernels_in_tritons_interpreter():
    pytest.importorskip("triton", reason="torch for a CPU brings no Triton; `make kernels` runs this")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_group_norm as t; t.check_kernels('cpu')"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], env=environment, check=True)


def test_a_u_net_and_a_decoder_draw_the_same_with_them(tmp_path: Path):
    make(tmp_path / "tiny", "tiny")

    def draw(*, kernels: bool) -> tuple[torch.Tensor, torch.Tensor]:
        loaded = checkpoint.load(tmp_path / "tiny")
        unet = loaded.unet.to(memory_format=torch.channels_last)
        if kernels:
            use_kernel_norms(unet)
            use_kernel_norms(loaded.vae.decoder)
            networks = (*unet.modules(), *loaded.vae.decoder.modules())
            assert not [module for module in networks if type(module) is nn.GroupNorm]
        torch.manual_seed(0)
        latents, time = torch.randn(2, 4, 8, 8), unet.embed_time(torch.tensor([500.0]))
        text = unet.project_text(torch.randn(4, 8, unet.text_width))
        with torch.inference_mode():
            return Denoiser(unet)(latents, time, text), Decoder(loaded.vae)(latents)[0]

    (noise, pixels), (stock_noise, stock_pixels) = draw(kernels=True), draw(kernels=False)
    assert torch.allclose(noise, stock_noise, atol=1e-4)
    assert int((pixels.int() - stock_pixels.int()).abs().max()) <= 1


def test_parts_divide_the_pixels():
    assert [part_of(pixels, 128) for pixels in (4096, 4032, 63, 96, 128)] == [128, 64, 1, 32, 128]
