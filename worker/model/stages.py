"""The networks of a latent diffusion model as every backend compiles them: tensors in and out, at fixed shapes.

Latents, and all that the sampler touches, are float32; what is inside a network has the precision of its weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from worker.model.unet import UNet

DECODED_AT_ONCE = 4  # images: at full size a decoder's features are gigabytes for sixteen


def decoded_at_once(batch: int) -> int:
    """How many images of a batch are decoded in one go: equal parts, or bytes would depend on an image's slot."""
    return max(n for n in range(1, DECODED_AT_ONCE + 1) if batch % n == 0)


class TextEncoder(nn.Module):
    """Tokens to what the U-Net's cross-attentions read of them, once for a whole image."""

    def __init__(self, text_encoder: Any, unet: UNet) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """int64 (batch, tokens) to keys and values for each cross-attention: (batch, heads, tokens, channels)."""
        return self.unet.project_text(self.text_encoder(input_ids=tokens).last_hidden_state)


class TimeEmbedder(nn.Module):
    """Timesteps to what each resnet of the U-Net adds: a table for the steps of a plan."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, timesteps: Tensor) -> Tensor:
        """float32 (steps,) to (steps, sum of all resnets' channels)."""
        return self.unet.embed_time(timesteps)


class Denoiser(nn.Module):
    """One evaluation of the U-Net, for one text or both guidance halves of each image."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, time: Tensor, text: list[Tensor]) -> Tensor:
        """float32 (texts, channels, height / 8, width / 8) from float32 latents (batch, ...); `texts` is batch, or
        2 * batch when guided: first without the prompt, then with it. `time` (1, sum of channels)."""
        return self.unet.denoise(latents.to(time.dtype), time, text).float()


class Decoder(nn.Module):
    """Latents to pixels; the conversion to bytes is part of it, so that it happens on the device."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.scaling_factor = float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 pixels (batch, height, width, 3) and bool (batch,): which images are finite. Where latents are not,
        the decoder gets zeros: its kernels need not be asked what they make of NaN."""
        finite = _is_finite(latents)
        sound = torch.where(finite[:, None, None, None], latents, 0.0) / self.scaling_factor
        image = self.decoder(self.post_quant_conv(sound.to(self.post_quant_conv.weight.dtype))).float()
        finite = finite & _is_finite(image)
        image = torch.where(finite[:, None, None, None], image, 0.0)
        pixels = (image * 127.5 + 127.5).clamp(0.0, 255.0).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous(), finite


def _is_finite(x: Tensor) -> Tensor:
    """bool (batch,): infinity minus itself is NaN, and NaN equals nothing."""
    return ((x - x) == 0).flatten(1).all(1)
