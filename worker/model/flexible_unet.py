"""DeciDiffusion's U-Net, versions 1.0 and 2.0, built from the `configurations` of its published config.json.

Parameter names, counts and shapes are the published ones; the blocks are diffusers' own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any, Self

from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from services.core.model.errors import SettingsError
from worker.model.unet import CONCAT_SKIP, SAVE_SKIP, Op, UNet


@dataclass(frozen=True, slots=True, kw_only=True)
class Configurations:
    """The published dict. Lists run from the outermost block inwards for `down`, from the innermost out for `up`.

    The mid block's fields are optional. The last two fields are not published; smaller models need them.
    """

    sample_size: int
    temb_dim: int
    resnet_eps: float
    resnet_act_fn: str
    num_attention_heads: int
    cross_attention_dim: int
    mix_block_in_forward: bool
    down_blocks_in_channels: tuple[int, ...]
    down_blocks_out_channels: tuple[int, ...]
    down_blocks_num_resnets: tuple[int, ...]
    down_blocks_num_attentions: tuple[int, ...]
    add_downsample: tuple[bool, ...]
    prev_output_channels: tuple[int, ...]
    up_blocks_num_resnets: tuple[int, ...]
    up_blocks_num_attentions: tuple[int, ...]
    add_upsample: tuple[bool, ...]
    mid_num_resnets: int = 0
    mid_num_attentions: int = 0
    add_upsample_mid_block: bool = False
    norm_num_groups: int = 32
    latent_channels: int = 4

    @classmethod
    def read(cls, published: Mapping[str, Any]) -> Self:
        """Raises SettingsError, in one sentence, for missing, unknown or inconsistent fields.

        Unknown fields that are null, false, zero or empty are ignored, since they enable nothing.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(name for name, value in published.items() if name not in known and value):
            raise SettingsError(f'The flexible U-Net\'s "configurations" hold the unknown field {unknown[0]!r}.')
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in published.items()
            if name in known
        }
        try:
            read = cls(**values)
        except TypeError as error:
            missing = str(error).partition("argument")[2].strip(" s:")
            raise SettingsError(f'The flexible U-Net\'s "configurations" lack {missing}.') from None
        read._check()
        return read

    @property
    def has_mid(self) -> bool:
        return self.mid_num_resnets > 0 or self.mid_num_attentions > 0

    def _check(self) -> None:
        blocks = {
            entry.name: len(value) for entry in fields(self) if isinstance(value := getattr(self, entry.name), tuple)
        }
        if len(set(blocks.values())) != 1:
            raise SettingsError(f'The flexible U-Net\'s "configurations" name unequal numbers of blocks: {blocks}.')
        if self.resnet_act_fn not in ("silu", "swish"):
            raise SettingsError(
                f"The flexible U-Net's resnet_act_fn is {self.resnet_act_fn!r}; only silu is supported."
            )
        kept = 1 + sum(self.down_blocks_num_resnets) + sum(self.add_downsample[:-1])
        joined = sum(self.up_blocks_num_resnets)
        if kept != joined:
            raise SettingsError(f"The flexible U-Net saves {kept} skips but its up blocks take {joined}.")


class FlexibleUNet(UNet):
    """The network of `configurations`: 525,277,444 parameters in 480 tensors for version 2.0."""

    def __init__(self, configurations: Configurations | Mapping[str, Any]) -> None:
        super().__init__()
        c = configurations if isinstance(configurations, Configurations) else Configurations.read(configurations)
        self.configurations = c
        outer = c.down_blocks_in_channels[0]
        self.conv_in = nn.Conv2d(c.latent_channels, outer, 3, padding=1)
        self.time_proj = Timesteps(outer, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(outer, c.temb_dim)
        self.down_blocks = nn.ModuleList(_DownBlock(c, number) for number in range(len(c.add_downsample)))
        if c.has_mid:
            self.mid_block = _MidBlock(c)
        self.up_blocks = nn.ModuleList(_UpBlock(c, number) for number in range(len(c.add_upsample)))
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, outer, eps=1e-5)
        self.conv_out = nn.Conv2d(outer, c.latent_channels, 3, padding=1)
        self.program = self._program()

    def _program(self) -> list[Op]:
        """A skip is saved right after each resnet, before the attention that follows it; the stock U-Net saves it after
        the attention. Version 1.0 runs the first resnet of its mid block twice."""
        ops: list[Op] = []
        for number, block in enumerate(self.down_blocks):
            for op in _ops(block.modules_list):
                ops += [op, SAVE_SKIP] if op.kind == "resnet" else [op]
            if block.downsamplers is not None:
                ops.append(Op("resample", block.downsamplers[0]))
                ops += [SAVE_SKIP] if number < len(self.down_blocks) - 1 else []
        if self.configurations.has_mid:
            first, *others = _ops(self.mid_block.modules_list)
            ops += [first, first, *others]
            if self.mid_block.upsamplers is not None:
                ops.append(Op("resample", self.mid_block.upsamplers[0]))
        for block in self.up_blocks:
            for op in _ops(block.modules_list):
                ops += [CONCAT_SKIP, op] if op.kind == "resnet" else [op]
            if block.upsamplers is not None:
                ops.append(Op("resample", block.upsamplers[0]))
        return ops


class _DownBlock(nn.Module):
    def __init__(self, c: Configurations, number: int) -> None:
        super().__init__()
        wide = c.down_blocks_out_channels[number]
        widths = [c.down_blocks_in_channels[number], *[wide] * (c.down_blocks_num_resnets[number] - 1)]
        resnets = [_resnet(c, width, wide) for width in widths]
        self.modules_list = _mixed(c, resnets, c.down_blocks_num_attentions[number], wide)
        down = [Downsample2D(wide, use_conv=True, out_channels=wide, padding=1, name="op")]
        self.downsamplers = nn.ModuleList(down) if c.add_downsample[number] else None


class _MidBlock(nn.Module):
    def __init__(self, c: Configurations) -> None:
        super().__init__()
        wide = c.down_blocks_out_channels[-1]
        first, *others = (_resnet(c, wide, wide) for _ in range(1 + c.mid_num_resnets))
        self.modules_list = nn.ModuleList([first, *_mixed(c, others, c.mid_num_attentions, wide)])
        up = [Upsample2D(wide, use_conv=True, out_channels=wide)]
        self.upsamplers = nn.ModuleList(up) if c.add_upsample_mid_block else None


class _UpBlock(nn.Module):
    def __init__(self, c: Configurations, number: int) -> None:
        super().__init__()
        inner = len(c.add_upsample) - 1 - number  # the down block whose skips it takes
        wide, narrow = c.down_blocks_out_channels[inner], c.down_blocks_in_channels[inner]
        last = c.up_blocks_num_resnets[number] - 1
        resnets = [
            _resnet(c, (c.prev_output_channels[number] if n == 0 else wide) + (narrow if n == last else wide), wide)
            for n in range(last + 1)
        ]
        self.modules_list = _mixed(c, resnets, c.up_blocks_num_attentions[number], wide)
        up = [Upsample2D(wide, use_conv=True, out_channels=wide)]
        self.upsamplers = nn.ModuleList(up) if c.add_upsample[number] else None


def _resnet(c: Configurations, wide_in: int, wide_out: int) -> nn.Module:
    return ResnetBlock2D(
        in_channels=wide_in, out_channels=wide_out, temb_channels=c.temb_dim, eps=c.resnet_eps, groups=c.norm_num_groups
    )


def _mixed(c: Configurations, resnets: Sequence[nn.Module], attentions: int, wide: int) -> nn.ModuleList:
    """Resnet, attention, resnet, attention, then the surplus of either; or all resnets first."""
    heads = c.num_attention_heads
    transformers = [
        Transformer2DModel(
            heads, wide // heads, wide, cross_attention_dim=c.cross_attention_dim, norm_num_groups=c.norm_num_groups
        )
        for _ in range(attentions)
    ]
    if not c.mix_block_in_forward:
        return nn.ModuleList([*resnets, *transformers])
    pairs = zip_longest(resnets, transformers)
    return nn.ModuleList([module for pair in pairs for module in pair if module is not None])


def _ops(modules: Sequence[nn.Module]) -> list[Op]:
    return [Op("attention" if isinstance(module, Transformer2DModel) else "resnet", module) for module in modules]
