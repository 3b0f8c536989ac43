"""The networks of a latent diffusion model as every backend compiles them: tensors in and out, at fixed shapes.

Latents and everything that the sampler computes are float32; a network's inside has the precision of its weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from worker.model import latent_scale
from worker.model.unet import UNet

MAX_DECODE_BATCH = 4  # images: at full size, a decoder's features for sixteen take gigabytes


def decode_batch_size(batch: int) -> int:
    """How many images of a batch are decoded at once. Parts are equal, so that bytes do not depend on the slot."""
    return max(n for n in range(1, MAX_DECODE_BATCH + 1) if batch % n == 0)


class TextEncoder(nn.Module):
    """From tokens to the keys and values of the U-Net's cross-attentions, once for all steps."""

    def __init__(self, text_encoder: Any, unet: UNet) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """From int64 (batch, tokens) to keys and values for each cross-attention: (batch, heads, tokens, channels)."""
        return self.unet.project_text(self.text_encoder(input_ids=tokens).last_hidden_state)


class TimeEmbedder(nn.Module):
    """From timesteps to what each resnet of the U-Net adds: a table for all steps."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, timesteps: Tensor) -> Tensor:
        """From float32 (steps,) to (steps, sum of all resnets' channels)."""
        return self.unet.embed_time(timesteps)


class Denoiser(nn.Module):
    """One evaluation of the U-Net, for one text or both guidance halves of each image."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, time: Tensor, text: list[Tensor]) -> Tensor:
        """The prediction, float32 (texts, channels, height / 8, width / 8).

        Args:
            latents: float32 (batch, channels, height / 8, width / 8).
            time: (1, sum of channels).
            text: keys and values of `texts` rows: batch, or 2 * batch when guided, first uncond, then text.
        """
        return self.unet.denoise(latents.to(time.dtype), time, text).float()


class Encoder(nn.Module):
    """From uint8 pixels to the distribution of an input's latents."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.scale = latent_scale.read(vae.config, vae.config.latent_channels)
        per_channel = [torch.tensor(v)[:, None, None] if v else None for v in (self.scale.mean, self.scale.std)]
        self.mean, self.std = per_channel

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """From (batch, height, width, 3) to mean and deviation, float32 (batch, channels, height / 8, width / 8), as
        the sampler scales latents."""
        image = pixels.permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0
        moments = self.encoder(image.to(self.encoder.conv_in.weight.dtype))
        moments = (moments if self.quant_conv is None else self.quant_conv(moments)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        deviation = (0.5 * log_variance.clamp(-30.0, 20.0)).exp()
        factor: Any = self.scale.scaling
        if self.std is not None and self.mean is not None:
            mean, factor = mean - self.mean.to(mean.device), factor / self.std.to(mean.device)
        elif self.scale.shift:
            mean = mean - self.scale.shift
        return mean * factor, deviation * factor


class Decoder(nn.Module):
    """From latents to uint8 pixels, converted on the device."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        scale = latent_scale.read(vae.config, vae.config.latent_channels)
        self.scaling, self.shift = scale.scaling, scale.shift
        per_channel = [torch.tensor(values)[:, None, None] if values else None for values in (scale.mean, scale.std)]
        self.mean, self.std = per_channel

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 pixels (batch, height, width, 3), and bool (batch,): which images are finite.

        The decoder gets zeros for latents that are not finite, so that NaN cannot reach the other images.
        """
        finite = _is_finite(latents)
        sound = torch.where(finite[:, None, None, None], latents, 0.0)
        if self.std is not None and self.mean is not None:
            sound = sound * self.std.to(sound.device) / self.scaling + self.mean.to(sound.device)
        else:
            sound = sound / self.scaling + self.shift if self.shift else sound / self.scaling
        sound = sound.to(self.decoder.conv_in.weight.dtype)
        image = self.decoder(sound if self.post_quant_conv is None else self.post_quant_conv(sound)).float()
        finite = finite & _is_finite(image)
        image = torch.where(finite[:, None, None, None], image, 0.0)
        pixels = (image * 127.5 + 127.5).clamp(0.0, 255.0).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous(), finite


def _is_finite(x: Tensor) -> Tensor:
    """bool (batch,). x - x is NaN for infinite or NaN x, and NaN is not equal to 0."""
    return ((x - x) == 0).flatten(1).all(1)
