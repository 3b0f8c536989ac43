"""Exports the networks as ONNX graphs in float32, with static shapes and named tensors, for any ONNX runtime.

All graphs of a model, at all batch sizes, refer to one file of weights beside them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worker.model import onnx_files
from worker.model.checkpoint import Checkpoint
from worker.model.directory import SIZE_UNIT
from worker.model.stages import Decoder, Denoiser, Encoder, TextEncoder, TimeEmbedder
from worker.model.text import Prompts

OPSET = 20
WEIGHTS = "weights.bin"


class Exporter:
    """Writes a checkpoint's graphs. Its output depends only on the checkpoint and the libraries' versions."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Converts the checkpoint's networks to float32, in place."""
        self.prompts = Prompts.of(checkpoint.tokenizer, checkpoint.max_tokens)
        text_encoder, unet, vae = (
            network.float().eval() for network in (checkpoint.text_encoder, checkpoint.unet, checkpoint.vae)
        )
        self._text, self._time = TextEncoder(text_encoder, unet), TimeEmbedder(unet)
        self._denoiser, self._decoder, self._encoder = Denoiser(unet), Decoder(vae), Encoder(vae)
        self.latent_channels = unet.latent_channels
        # The U-Net has the same name in all of them, so its weights are stored once.
        tensors: dict[str, Tensor] = {}
        for network in (self._text, self._denoiser, self._decoder, self._encoder):
            tensors |= network.state_dict()
        self._weights = onnx_files.Weights(WEIGHTS, tensors)

    def write_weights(self, file: Path) -> None:
        self._weights.write(file)

    def write_text(self, file: Path, batch: int) -> None:
        """tokens int64 (batch, tokens) -> key_0, value_0, key_1, ...: (batch, heads, tokens, channels of a head)."""
        given = {"tokens": torch.zeros(batch, self.prompts.length, dtype=torch.int64)}
        self._write(self._text, file, given, list(self._example_text(1)))

    def write_time(self, file: Path) -> None:
        """timesteps (1,) -> time (1, sum of all resnets' channels)."""
        self._write(self._time, file, {"timesteps": torch.zeros(1)}, ["time"])

    def write_denoiser(self, file: Path, batch: int, height: int, width: int, *, guided: bool, chunks: int = 1) -> None:
        """latents (batch, channels, height, width), time, key_0, value_0, ... -> noise_pred. When guided, keys, values
        and noise_pred have 2 * batch rows: first those of the negative prompts, then those of the prompts. Keys and
        values have the tokens of `chunks` chunks of a prompt."""
        latents = torch.zeros(batch, self.latent_channels, height, width)
        with torch.no_grad():
            time = self._time(torch.zeros(1))
        given = {"latents": latents, "time": time} | self._example_text(2 * batch if guided else batch, chunks)
        self._write(self._denoiser, file, given, ["noise_pred"])

    def write_decoder(self, file: Path, batch: int, height: int, width: int) -> None:
        """latents (batch, channels, height, width) -> pixels uint8 (batch, 8 * height, 8 * width, 3), finite bool
        (batch,)."""
        given = {"latents": torch.zeros(batch, self.latent_channels, height, width)}
        self._write(self._decoder, file, given, ["pixels", "finite"])

    def write_encoder(self, file: Path, height: int, width: int) -> None:
        """pixels uint8 (1, 8 * height, 8 * width, 3) -> mean, deviation (1, channels, height, width)."""
        given = {"pixels": torch.zeros(1, height * SIZE_UNIT, width * SIZE_UNIT, 3, dtype=torch.uint8)}
        self._write(self._encoder, file, given, ["mean", "deviation"])

    def _example_text(self, texts: int, chunks: int = 1) -> dict[str, Tensor]:
        with torch.no_grad():
            found = self._text(torch.zeros(1, self.prompts.length, dtype=torch.int64))
        names = [f"{kind}_{n}" for n in range(len(found) // 2) for kind in ("key", "value")]
        return {
            name: torch.zeros(texts, one.shape[1], chunks * one.shape[2], one.shape[3])
            for name, one in zip(names, found, strict=True)
        }

    def _write(self, network: nn.Module, file: Path, given: dict[str, Tensor], made: Sequence[str]) -> None:
        """`given` are example inputs by name, in the order of `forward`, which takes keys and values as one list."""
        text = [value for name, value in given.items() if name.startswith(("key_", "value_"))]
        arguments: list[Any] = [value for name, value in given.items() if not name.startswith(("key_", "value_"))]
        onnx_files.write(
            network, file, [*arguments, text] if text else arguments, inputs=list(given), outputs=made, opset=OPSET,
            weights=self._weights,
        )  # fmt: skip
