"""Runs a U-Net as a list of operations; DeciDiffusion's flexible network and the stock one share this code.

Each network lists its operations. All optimizations here are exact.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the usual alias

from worker.model.group_norm import KernelGroupNorm

Kind = Literal["resnet", "attention", "save_skip", "concat_skip", "resample"]


class Op(NamedTuple):
    """One operation on the running features `x` (batch, channels, height, width).

    `resnet`, `attention`, `resample`: x = module(x). `save_skip`: pushes x on the stack of skips. `concat_skip`:
    concatenates x with the skip popped from the stack.
    """

    kind: Kind
    module: Any = None


SAVE_SKIP, CONCAT_SKIP = Op("save_skip"), Op("concat_skip")


class UNet(nn.Module):
    """The parts that every latent diffusion U-Net has, and the forward pass over its `program`.

    Subclasses set `conv_in, time_proj, time_embedding, conv_norm_out, conv_out` and `program`.

    The parts of a forward pass that are the same at every step are computed separately: `embed_time` (one row per
    timestep) and `project_text` (keys and values of each cross-attention). With guidance there are two texts per latent
    (Ho and Salimans, 2022); everything before the first attention is then computed once for both.
    """

    conv_in: nn.Conv2d
    time_proj: nn.Module
    time_embedding: nn.Module
    conv_norm_out: nn.GroupNorm
    conv_out: nn.Conv2d
    program: Sequence[Op]

    @property
    def latent_channels(self) -> int:
        return self.conv_in.in_channels

    @property
    def text_width(self) -> int:
        """The width of the text states that cross-attention reads."""
        return int(self._attentions()[0].attn2.to_k.in_features)

    @property
    def num_downsamples(self) -> int:
        """How often the program halves the latents, whose sides must be multiples of 2 to this power."""
        return sum(op.kind == "resample" and op.module.conv.stride == (2, 2) for op in self.program)

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The network's prediction, (batch, channels, height, width), in one call: for training and tests.

        `latents` (batch, channels, height, width), `timesteps` (batch,) in 0..999, `text` (batch, tokens, width).
        """
        return self.denoise(latents, self.embed_time(timesteps), self.project_text(text))

    def embed_time(self, timesteps: Tensor) -> Tensor:
        """(n, sum of all resnets' channels): what each resnet adds to its features, for `timesteps` (n,)."""
        return self.project_time(self.time_proj(timesteps).to(self.conv_in.weight.dtype))

    def project_time(self, sinusoids: Tensor) -> Tensor:
        """`embed_time` from what `time_proj` makes of the timesteps, (n, channels)."""
        embedding = self.time_embedding(sinusoids)
        return torch.cat([resnet.time_emb_proj(F.silu(embedding)) for resnet in self._resnets()], dim=1)

    def project_text(self, text: Tensor) -> list[Tensor]:
        """Keys and values of `text` (batch, tokens, width) for each cross-attention in turn: two tensors
        (batch, heads, tokens, channels of a head) each."""
        return [
            _split_heads(projection(text), block.attn2.heads)
            for block in self._attentions()
            for projection in (block.attn2.to_k, block.attn2.to_v)
        ]

    def denoise(self, latents: Tensor, time: Tensor, text: Sequence[Tensor]) -> Tensor:
        """The prediction for each text, (texts, channels, height, width), of the latents' dtype.

        Args:
            latents: (batch, channels, height, width).
            time: rows of `embed_time`, (1 or batch, sum of channels).
            text: what `project_text` gave for as many texts as latents, or for a multiple of it: first all of the
                first guidance half, then all of the second.
        """
        copies = text[0].shape[0] // latents.shape[0]
        offsets = self._time_offsets()
        keys_and_values = iter(zip(text[::2], text[1::2], strict=True))
        x = self.conv_in(latents)
        skips = [x]
        for kind, module in self.program:
            if kind == "resnet":
                start, end = offsets[id(module)]
                x = resnet_block(module, x, time[:, start:end])
            elif kind == "attention":
                x = _transformer(module, _repeat_halves(x, text[0].shape[0], copies), *next(keys_and_values))
            elif kind == "save_skip":
                skips.append(x)
            elif kind == "concat_skip":
                x = torch.cat([x, _repeat_halves(skips.pop(), x.shape[0], copies)], dim=1)
            else:
                x = module(x)
        x = _repeat_halves(x, text[0].shape[0], copies)
        norm = self.conv_norm_out
        return self.conv_out(norm.silu(x) if isinstance(norm, KernelGroupNorm) else F.silu(norm(x)))

    def _resnets(self) -> list[Any]:
        """Each resnet once, in the order of its first use."""
        found = [op.module for op in self.program if op.kind == "resnet"]
        return list(dict.fromkeys(found))

    def _attentions(self) -> list[Any]:
        return [op.module.transformer_blocks[0] for op in self.program if op.kind == "attention"]

    def _time_offsets(self) -> dict[int, tuple[int, int]]:
        offsets, start = {}, 0
        for resnet in self._resnets():
            end = start + resnet.out_channels
            offsets[id(resnet)], start = (start, end), end
        return offsets


def _repeat_halves(x: Tensor, rows: int, copies: int) -> Tensor:
    """Repeats `x` for each guidance half, unless it has `rows` rows already. Keeps its memory format."""
    return x if x.shape[0] == rows else torch.cat([x] * copies)


def resnet_block(resnet: Any, x: Tensor, time: Tensor | None) -> Tensor:
    """diffusers' ResnetBlock2D with its time projection already computed: `time` (1 or batch, channels), or None for
    the decoder's, which has none."""
    if isinstance(resnet.norm1, KernelGroupNorm):
        hidden = resnet.norm1.silu(x)
        conv = resnet.conv1
        hidden = F.conv2d(hidden, conv.weight, None, conv.stride, conv.padding)
        bias = conv.bias[None]  # added by the norm, which saves a pass over the features
        hidden = resnet.norm2.silu(hidden, bias if time is None else bias + time)
    else:
        hidden = resnet.conv1(F.silu(resnet.norm1(x)))
        hidden = F.silu(resnet.norm2(hidden if time is None else hidden + time[:, :, None, None]))
    hidden = resnet.conv2(hidden)
    shortcut = x if resnet.conv_shortcut is None else resnet.conv_shortcut(x)
    return (shortcut + hidden) / resnet.output_scale_factor if resnet.output_scale_factor != 1.0 else shortcut + hidden


def _transformer(transformer: Any, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """diffusers' Transformer2DModel with convolutions around one block, its text already projected."""
    batch, channels, height, width = x.shape
    (block,) = transformer.transformer_blocks
    tokens = transformer.proj_in(transformer.norm(x)).flatten(2).transpose(1, 2)
    own = block.norm1(tokens)
    heads = block.attn1.heads
    tokens = tokens + _attention(
        block.attn1,
        own,
        _split_heads(block.attn1.to_k(own), heads),
        _split_heads(block.attn1.to_v(own), heads),
    )
    tokens = tokens + _attention(block.attn2, block.norm2(tokens), keys, values)
    tokens = tokens + block.ff(block.norm3(tokens))
    return x + transformer.proj_out(tokens.transpose(1, 2).reshape(batch, channels, height, width))


def _attention(attention: Any, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Multi-head attention of `tokens` (batch, n, channels); keys and values (batch, heads, m, channels of a head)."""
    queries = _split_heads(attention.to_q(tokens), attention.heads)
    found = F.scaled_dot_product_attention(queries, keys, values)
    return attention.to_out[0](found.transpose(1, 2).flatten(2))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, n, channels) to (batch, heads, n, channels / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of `run`, counted by torch (a multiply-add counts two); meta tensors will do."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())
