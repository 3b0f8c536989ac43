"""Stable Diffusion 1.x's U-Net on the same walk, for comparisons: diffusers' own network, taken apart.

It keeps a skip after each attention; its parameters keep their published names.
"""

from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from services.core.errors import SettingsError
from worker.model.unet import JOIN, KEEP, Op, UNet

SD15: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
}
"""Stable Diffusion 1.5: what its config.json says beyond diffusers' defaults."""


class StockUNet(UNet):
    """The network of a stock config.json: 859,520,964 parameters for Stable Diffusion 1.5."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        known = {name: value for name, value in config.items() if not name.startswith("_")}
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
                ops += [*pair, KEEP]
            for downsampler in block.downsamplers or ():
                ops += [Op("resample", downsampler), KEEP]
        if self.mid_block is not None:
            first, *others = self.mid_block.resnets
            ops.append(Op("resnet", first))
            for attention, resnet in zip(self.mid_block.attentions, others, strict=True):
                ops += [Op("attend", attention), Op("resnet", resnet)]
        for block in self.up_blocks:
            for pair in _pairs(block):
                ops += [JOIN, *pair]
            for upsampler in block.upsamplers or ():
                ops.append(Op("resample", upsampler))
        return ops


def _pairs(block: nn.Module) -> list[list[Op]]:
    """Each resnet, with the attention that follows it if the block has any."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return [
        [Op("resnet", resnet), *([] if attention is None else [Op("attend", attention)])]
        for resnet, attention in zip(block.resnets, attentions, strict=True)
    ]
