"""The checkpoint's own safety checker: flags pictures that resemble its publisher's concepts.

It changes no picture. It compares CLIP's embedding of the picture with each concept's, by cosine and with a threshold
(Rando et al., 2022).
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the usual alias

from services.core.model.errors import SettingsError
from worker.model import directory, networks, weights

COMPONENT = "safety_checker"
CONCEPTS, SPECIAL_CARE = 17, 3
STRICTER = 0.01  # added to every concept's score if a special-care concept is near


@dataclass(frozen=True, slots=True)
class Preparation:
    """How pictures become the encoder's input: resize the shorter side, crop the centre, normalize each channel."""

    shortest: int = 224
    crop: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Preparation":
        """From preprocessor_config.json, whose sizes are numbers or objects. Missing fields have CLIP's values."""
        usual = cls()
        try:
            read = cls(
                shortest=_side(config.get("size", usual.shortest), "shortest_edge"),
                crop=_side(config.get("crop_size", usual.crop), "height"),
                mean=tuple(float(value) for value in config.get("image_mean", usual.mean)),
                std=tuple(float(value) for value in config.get("image_std", usual.std)),
            )
        except (KeyError, TypeError, ValueError):
            raise SettingsError("The model's feature_extractor/preprocessor_config.json cannot be read.") from None
        if not 1 <= read.crop <= read.shortest or len(read.mean) != 3 or len(read.std) != 3 or 0.0 in read.std:
            raise SettingsError("The model's feature_extractor/preprocessor_config.json has invalid values.")
        return read

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (batch, height, width, 3) to float32 (batch, 3, crop, crop); resized bicubically."""
        height, width = pixels.shape[1:3]
        shorter = min(height, width)
        size = (self.shortest * width // shorter, self.shortest * height // shorter)
        left, top = ((side - self.crop) // 2 for side in size)
        box = (left, top, left + self.crop, top + self.crop)
        pictures = [Image.fromarray(row).resize(size, Image.Resampling.BICUBIC).crop(box) for row in pixels]
        values = np.stack([np.asarray(picture) for picture in pictures]) / 255.0
        values = (values - np.asarray(self.mean)) / np.asarray(self.std)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)


class SafetyChecker:
    """See `load_safety_checker`."""

    def __init__(self, network: "_Network", preparation: Preparation) -> None:
        self._network = network
        self._preparation = preparation
        self._one_at_a_time = threading.Lock()
        device = network.visual_projection.weight.device
        # Its own, before others: it would wait for the steps of the next batch otherwise.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def flags(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which pictures are flagged, bool (batch,). `pixels` uint8 (batch, height, width, 3) are left as they are.
        Any thread may ask."""
        weight = self._network.visual_projection.weight
        prepared = torch.from_numpy(self._preparation.prepare(pixels))
        with self._one_at_a_time, torch.cuda.stream(self._stream), torch.inference_mode():
            seen = self._network(prepared.to(weight.device, weight.dtype))
            return np.asarray(seen.cpu().numpy(), dtype=np.bool_)


def load_safety_checker(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SafetyChecker:
    """The checker of the model in `folder`, from its safety_checker and feature_extractor.

    Raises SettingsError, in one sentence, if they are missing or invalid.
    """
    config = directory.read_object(folder / COMPONENT / "config.json")
    preparation = Preparation.read(directory.read_object(folder / "feature_extractor" / "preprocessor_config.json"))
    file = weights.find(folder / COMPONENT)
    with networks.as_settings_error(f"{COMPONENT}/config.json makes no network"), torch.device("meta"):
        network = _Network(config)
    if network.image_size != preparation.crop:
        raise SettingsError(
            f"The model's safety checker takes pictures of {network.image_size} pixels, but its feature extractor "
            f"makes {preparation.crop}."
        )
    networks.fill(network, COMPONENT, file, dtype)
    return SafetyChecker(network.to(device), preparation)


class _Network(nn.Module):
    """The network with the published tensor names; returns the verdicts."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        vision_fields = dict(config["vision_config"]) | dict(config.get("vision_config_dict") or {})
        vision = CLIPVisionConfig(
            **{name: value for name, value in vision_fields.items() if name in networks.CLIP_FIELDS}
        )
        width = int(config["projection_dim"])
        self.image_size = int(vision.image_size)
        self.vision_model = CLIPVisionModel(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
        self.concept_embeds = nn.Parameter(torch.empty(CONCEPTS, width))
        self.concept_embeds_weights = nn.Parameter(torch.empty(CONCEPTS))
        self.special_care_embeds = nn.Parameter(torch.empty(SPECIAL_CARE, width))
        self.special_care_embeds_weights = nn.Parameter(torch.empty(SPECIAL_CARE))

    def forward(self, prepared: Tensor) -> Tensor:
        """From float (batch, 3, side, side) to bool (batch,)."""
        seen = F.normalize(self.visual_projection(self.vision_model(pixel_values=prepared).pooler_output))
        care = self._excess(seen, self.special_care_embeds, self.special_care_embeds_weights) > 0
        near = care.any(dim=1, keepdim=True) * STRICTER
        excess = self._excess(seen, self.concept_embeds, self.concept_embeds_weights, near)
        return (excess > 0).any(dim=1)

    @staticmethod
    def _excess(seen: Tensor, concepts: Tensor, thresholds: Tensor, more: Tensor | float = 0.0) -> Tensor:
        """Cosines minus their thresholds, rounded to three digits as in the published code."""
        cosines = (seen @ F.normalize(concepts).T).float()
        return (cosines - thresholds.float() + more).round(decimals=3)


def _side(value: Any, name: str) -> int:
    return int(value[name] if isinstance(value, dict) else value)
