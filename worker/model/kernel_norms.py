"""Makes a network use the kernels of `group_norm` where diffusers' own blocks would not."""

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from worker.model import group_norm
from worker.model.group_norm import KernelGroupNorm
from worker.model.unet import resnet_block


class _Resnet(ResnetBlock2D):
    """A block without a time projection: the decoder's."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        assert temb is None
        return resnet_block(self, input_tensor, None)


class _SiluNorm(KernelGroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.silu(x)


def use_kernel_norms(network: Any) -> None:
    """In `network`, a U-Net or the decoder of a VAE, in place."""
    group_norm.use_in(network)
    for module in network.modules():
        if type(module) is ResnetBlock2D and module.time_emb_proj is None:
            module.__class__ = _Resnet
    if isinstance(getattr(network, "conv_act", None), nn.SiLU):
        network.conv_norm_out.__class__ = _SiluNorm
        network.conv_act = nn.Identity()
