"""Stable Diffusion 1.x's U-Net as a `UNet` program: diffusers' own network, taken apart.

It saves a skip after each attention. Parameters have their published names.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from services.core.model.errors import SettingsError
from worker.model.unet import CONCAT_SKIP, SAVE_SKIP, Op, UNet

# Fields that may have any value.
HONOURED = (
    "sample_size", "in_channels", "out_channels", "flip_sin_to_cos", "freq_shift", "block_out_channels",
    "layers_per_block", "downsample_padding", "dropout", "norm_num_groups", "norm_eps", "cross_attention_dim",
    "attention_head_dim",
)  # fmt: skip
# All other fields must be absent, have diffusers' default, or one of these values.
FAMILY: dict[str, tuple[Any, ...]] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "act_fn": ("silu", "swish"),
}


class StockUNet(UNet):
    """The network of a stock config.json: 859,520,964 parameters for Stable Diffusion 1.5."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        known = {name: value for name, value in config.items() if not name.startswith("_")}
        _check(known)
        try:
            stock = UNet2DConditionModel(**known)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"The stock U-Net's config.json makes no network: {error}.") from None
        self.config = stock.config
        for name in ("conv_in", "time_proj", "time_embedding", "conv_norm_out", "conv_out"):
            setattr(self, name, getattr(stock, name))
        self.down_blocks, self.mid_block, self.up_blocks = stock.down_blocks, stock.mid_block, stock.up_blocks
        self.program = self._program()

    def _program(self) -> list[Op]:
        ops: list[Op] = []
        for block in self.down_blocks:
            for pair in _pairs(block):
                ops += [*pair, SAVE_SKIP]
            for downsampler in block.downsamplers or ():
                ops += [Op("resample", downsampler), SAVE_SKIP]
        if self.mid_block is not None:
            first, *others = self.mid_block.resnets
            ops.append(Op("resnet", first))
            for attention, resnet in zip(self.mid_block.attentions, others, strict=True):
                ops += [Op("attention", attention), Op("resnet", resnet)]
        for block in self.up_blocks:
            for pair in _pairs(block):
                ops += [CONCAT_SKIP, *pair]
            for upsampler in block.upsamplers or ():
                ops.append(Op("resample", upsampler))
        return ops


def _check(config: Mapping[str, Any]) -> None:
    """Raises SettingsError, in one sentence, for fields that the program would ignore: pictures would be wrong."""
    usual = inspect.signature(UNet2DConditionModel).parameters
    for name in sorted(usual.keys() & config.keys() - set(HONOURED)):
        found, default = config[name], usual[name].default
        values = found if isinstance(found, list | tuple) else [found]
        allowed = FAMILY.get(name, (default,))
        if any(value not in allowed and (value or default) for value in values):
            raise SettingsError(f"The model's unet has {name} {found!r}, which no Stable Diffusion 1.x has.")
    made, taken = config.get("out_channels", 4), config.get("in_channels", 4)
    if made != taken:
        raise SettingsError(f"The model's unet makes {made} latent channels from {taken}; they must be equal.")
    if isinstance(config.get("cross_attention_dim"), list | tuple):
        raise SettingsError("The model's unet has a cross_attention_dim for each block; only one for all is supported.")


def _pairs(block: nn.Module) -> list[list[Op]]:
    """Each resnet, with the attention that follows it if the block has any."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return [
        [Op("resnet", resnet), *([] if attention is None else [Op("attention", attention)])]
        for resnet, attention in zip(block.resnets, attentions, strict=True)
    ]
