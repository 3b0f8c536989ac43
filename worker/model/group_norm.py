"""Group norms for CUDA, with the SiLU that follows and the shift before them, by kernels of our own.

Inductor's read the few bytes that a group has of each pixel by themselves; these read whole rows of channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the usual alias

MOMENT_ROWS, APPLY_ROWS = 128, 64  # pixels of one program, at most
BLOCK = 64  # channels of one program: 128 bytes of each pixel in half precision
AT_ONCE = 4096  # moments that a program sums at a time


class KernelGroupNorm(nn.GroupNorm):
    """A group norm of channels-last features, computed in float32 whatever their dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:  # the decoder's attention gives (batch, channels, pixels)
            return super().forward(x)
        return self._normalize(x, None, silu=False)

    def silu(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """SiLU of the norm of `x` (batch, channels, height, width) plus `shift` (1 or batch, channels)."""
        return self._normalize(x, shift, silu=True)

    def _normalize(self, x: Tensor, shift: Tensor | None, *, silu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        found: Tensor = group_norm(x, self.weight, self.bias, shift, self.num_groups, self.eps, silu)
        return found


def use_in(network: nn.Module) -> None:
    """Makes every group norm of the network a KernelGroupNorm."""
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = KernelGroupNorm


@torch.library.custom_op("presswork::group_norm", mutates_args=())
def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """The norm of `x` (batch, channels, height, width) plus `shift` (1 or batch, channels), then SiLU if asked for."""
    wide = x.float() if shift is None else x.float() + shift.float()[:, :, None, None]
    found = F.group_norm(wide, groups, weight.float(), bias.float(), eps)
    return (F.silu(found) if silu else found).to(x.dtype, memory_format=torch.channels_last)


@group_norm.register_fake
def _like(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@group_norm.register_kernel("cuda")
def on_cuda(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """The same by the kernels; `x` is channels-last."""
    from worker.model import group_norm_kernels as kernels  # imports triton, which only torch for CUDA brings

    batch, channels, height, width = x.shape
    blocks = -(-channels // BLOCK)
    rows = part_of(height * width, MOMENT_ROWS)
    parts = height * width // rows
    means = torch.empty((2, batch, parts, channels), dtype=torch.float32, device=x.device)
    scales = torch.empty((2, batch, channels), dtype=torch.float32, device=x.device)
    kernels.moments[(batch * parts * blocks,)](x, means[0], means[1], channels, ROWS=rows, BLOCK=BLOCK)
    stride: Any = 0 if shift is None or shift.shape[0] == 1 else shift.stride(0)
    within = channels // groups
    padded = _power_of_two(within)
    kernels.finish[(batch, groups)](
        means[0], means[1], weight, bias, bias if shift is None else shift, scales[0], scales[1], channels,
        stride, rows, eps, SHIFTED=shift is not None, WIDTH=within, PADDED=padded, PARTS=parts,
        AT_ONCE=min(_power_of_two(parts), AT_ONCE // padded),
    )  # fmt: skip
    found = torch.empty_like(x, memory_format=torch.channels_last)
    rows = part_of(height * width, APPLY_ROWS)
    parts = height * width // rows
    kernels.apply[(batch * parts * blocks,)](
        x, scales[0], scales[1], found, parts, channels, SILU=silu, ROWS=rows, BLOCK=BLOCK
    )
    return found


def part_of(pixels: int, limit: int) -> int:
    """The largest power of two that divides `pixels`, up to `limit`, itself a power of two."""
    return min(limit, pixels & -pixels)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not less than n."""
    return 1 << (n - 1).bit_length()
