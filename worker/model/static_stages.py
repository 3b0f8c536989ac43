"""The networks as a compiler for accelerators takes them: tensors in and out, in plain operators that FP16 can hold.

They compute what `stages.py` does, but the U-Net takes text states, and the host scales latents and finishes pictures:
`latent_scale.py` says how.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the usual alias

from worker.model.unet import UNet

TIMESTEPS = 1000
HIDDEN_SCORE = -10000.0  # added to the scores of later tokens: exp gives exactly 0, in FP16 too


class TextStates(nn.Module):
    """From tokens to text states, with the attention written out: the library masks by float32's least number."""

    mask: Tensor

    def __init__(self, text_encoder: Any, tokens: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.register_buffer("mask", torch.full((tokens, tokens), HIDDEN_SCORE).triu(1))

    def forward(self, input_ids: Tensor) -> Tensor:
        """From int64 (batch, tokens) to (batch, tokens, width)."""
        x = self.text_encoder.embeddings(input_ids=input_ids)
        for layer in self.text_encoder.encoder.layers:
            x = x + self._attention(layer.self_attn, layer.layer_norm1(x))
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.text_encoder.final_layer_norm(x)

    def _attention(self, attention: Any, x: Tensor) -> Tensor:
        queries, keys, values = (
            projection(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = (queries * attention.scale) @ keys.transpose(-1, -2) + self.mask
        return attention.out_proj((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))


class TextDenoiser(nn.Module):
    """One evaluation of the U-Net. Keys and values are computed inside: they are 30 times as large as text states,
    which a device behind PCIe is given at every step."""

    sinusoids: Tensor

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        # A table, because FP16 is too coarse for the angles: near 998 radians its numbers are 0.5 apart.
        self.register_buffer("sinusoids", unet.time_proj(torch.arange(TIMESTEPS, dtype=torch.float32)))

    def forward(self, latents: Tensor, timestep: Tensor, text_states: Tensor) -> Tensor:
        """The prediction (texts, channels, height / 8, width / 8).

        Args:
            latents: (texts, channels, height / 8, width / 8).
            timestep: (texts,), whole numbers in 0..999.
            text_states: (texts, tokens, width).
        """
        time = self.unet.project_time(F.embedding(timestep.to(torch.int32), self.sinusoids))
        return self.unet.denoise(latents, time, self.unet.project_text(text_states))


class ImageDecoder(nn.Module):
    """From latents that `LatentScale.for_decoder` scaled to images of about -1 to 1, not clipped."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        """From (batch, channels, height / 8, width / 8) to (batch, 3, height, width)."""
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


class ImageEncoder(nn.Module):
    """From images of -1 to 1 to what `LatentScale.of_moments` makes a distribution of latents of."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        """From (batch, 3, height, width) to (batch, 2 * channels, height / 8, width / 8): means, then the logarithms of
        variances."""
        moments = self.encoder(image)
        return moments if self.quant_conv is None else self.quant_conv(moments)
