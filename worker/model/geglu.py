"""A feed-forward's GEGLU (Shazeer, 2020) for CUDA, by a kernel of our own that stores neither half of the product.

torch writes both halves and reads them again: 20 bytes for each output in half precision, of which this writes 2.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the usual alias

# One program's part: rows and columns of the result, and inputs at a time. Never chosen by timing.
ROWS, COLUMNS, AT_ONCE, TOGETHER = 128, 128, 64, 8
WARPS, STAGES = 8, 3


class KernelGEGLU(GEGLU):
    """diffusers' GEGLU, computed in float32 whatever its dtype and rounded once."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        found: Tensor = geglu(hidden_states, self.proj.weight, self.proj.bias)
        return found


def use_in(network: nn.Module) -> None:
    """Makes every GEGLU of the network a KernelGEGLU."""
    for module in network.modules():
        if type(module) is GEGLU:
            module.__class__ = KernelGEGLU


@torch.library.custom_op("presswork::geglu", mutates_args=())
def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """hidden * gelu(gate): halves (..., width) of `x` (..., inputs) by `weight` (2 * width, inputs), plus `bias`."""
    hidden, gate = F.linear(x.float(), weight.float(), bias.float()).chunk(2, dim=-1)
    return (hidden * F.gelu(gate)).to(x.dtype)


@geglu.register_fake
def _like(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2))


@geglu.register_kernel("cuda")
def on_cuda(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by the kernel."""
    from worker.model import geglu_kernels as kernels  # imports triton, which only torch for CUDA brings

    inputs, width = x.shape[-1], weight.shape[0] // 2
    flat = x.contiguous().view(-1, inputs)
    found = torch.empty((flat.shape[0], width), dtype=x.dtype, device=x.device)
    tiles = -(-flat.shape[0] // ROWS) * -(-width // COLUMNS)
    kernels.geglu[(tiles,)](
        flat, weight.contiguous(), bias, found, flat.shape[0], width, INPUTS=inputs, ROWS=ROWS, COLUMNS=COLUMNS,
        AT_ONCE=AT_ONCE, TOGETHER=TOGETHER, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return found.view(*x.shape[:-1], width)
