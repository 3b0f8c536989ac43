"""Reads LoRA files: which layers of a model they change, by which matrices and by how much (Hu et al., 2021).

The layouts of kohya's trainer, of diffusers (old and new) and of PEFT are read, for linear layers and convolutions.
Every tensor of a file is accounted for: it belongs to a change, or to a part with the reason why that does not fit.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from services.core.model.errors import PressworkError, SettingsError
from worker.model import weights
from worker.model.weights import Entry

TEXT = "text_encoder"
_DOWN, _UP = "down", "up"
_ROLES = (
    (re.compile(r"(.+)\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)\.weight"), _DOWN),
    (re.compile(r"(.+)\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)\.weight"), _UP),
    (re.compile(r"(.+)_lora\.down\.weight"), _DOWN),
    (re.compile(r"(.+)_lora\.up\.weight"), _UP),
    (re.compile(r"(.+?)(?:_lora)?\.alpha"), "alpha"),
)
_KOHYA = (("lora_unet_", False), ("lora_te_", True), ("lora_te1_", True))
_PEFT = "base_model.model."
# A part of a tensor's name -> what such files hold.
_OTHER_KINDS = {
    "hada_": "LoHa", "lokr_": "LoKr", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lora_mid": "LoCon with a "
    "core tensor", "oft_": "OFT", "lora_embedding_": "new embeddings", ".diff": "full weights", ".bias": "biases",
}  # fmt: skip
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class LoraUnusable(PressworkError):
    """The LoRA cannot be merged into this model."""


class Layer(NamedTuple):
    """A layer of the model: its component, and its weight's name and shape in the component's file."""

    component: str
    stored: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What a LoRA adds to one layer: scale * up @ down, which are named as in its file."""

    layer: Layer
    down: str
    up: str
    scale: float


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA beside a model. `skipped`: each part that does not fit -> why, in words that follow "it"."""

    file: Path
    changes: tuple[Change, ...]
    skipped: Mapping[str, str]


def layers(component: str, stored: Mapping[str, Entry], names: Mapping[str, str]) -> dict[str, Layer]:
    """The layers of a component that a LoRA can change, by their current names. `names`: stored -> current name."""
    return {
        names[name].removesuffix(".weight"): Layer(component, name, entry.shape)
        for name, entry in stored.items()
        if name.endswith(".weight") and len(entry.shape) in (2, 4) and "embedding." not in names[name]
    }


def read(file: Path, model: Mapping[str, Layer]) -> Lora:
    """Matches the LoRA in `file` with the layers of `model`, by name and shape.

    Raises LoraUnusable, in one sentence, if the file holds no LoRA or does not say how strong it is.
    """
    stored = weights.read_header(file)
    parts, others = _parts(stored)
    if not any(_DOWN in part for part in parts.values()):
        kinds = [kind for mark, kind in _OTHER_KINDS.items() if any(mark in name for name in stored)]
        what = f"{kinds[0]}, which cannot be merged" if kinds else "no LoRA"
        raise LoraUnusable(f"{file} holds {what}; its first tensor is {next(iter(stored), 'missing')}.")
    strength = _Strength(file, parts)
    flat = {(layer.component == TEXT, name.replace(".", "_")): layer for name, layer in model.items()}
    changes: list[Change] = []
    skipped: dict[str, str] = {}
    with safe_open(file, "pt") as opened:
        for name, part in parts.items():
            layer = _find(name, model, flat)
            reason = others.pop(name, "") or _misfit(part, layer, stored)
            if not reason and layer is not None:
                rank = stored[part[_DOWN]].shape[0]
                alpha = opened.get_tensor(part["alpha"]) if "alpha" in part else None
                scale = strength.scale(name, rank, alpha)
                reason = "" if math.isfinite(scale) else "has an alpha that is not finite"
                if not reason:
                    changes.append(Change(layer, part[_DOWN], part[_UP], scale))
            if reason:
                skipped[name] = reason
    return Lora(file, tuple(changes), skipped | others)


def delta(opened: Any, change: Change) -> Tensor:
    """What the change adds at weight 1, float32 in the layer's shape. `opened` is the LoRA's file by safe_open."""
    down, up = (opened.get_tensor(name).float() for name in (change.down, change.up))
    return (up.flatten(1) @ down.flatten(1)).reshape(change.layer.shape) * change.scale


def _parts(stored: Mapping[str, Entry]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The tensors of each part by their roles, and the parts with tensors that have none -> why they cannot be used."""
    parts: dict[str, dict[str, str]] = {}
    strange = []
    for name in stored:
        for pattern, role in _ROLES:
            if found := pattern.fullmatch(name):
                parts.setdefault(found[1], {})[role] = name
                break
        else:
            strange.append(name)
    others = {}
    for name in strange:
        owner = next((part for part in parts if name.startswith(f"{part}.")), name)
        kind = next((kind for mark, kind in _OTHER_KINDS.items() if mark in name), "")
        others[owner] = f"holds {kind}, which cannot be merged" if kind else "is no part of a LoRA that is known here"
    return parts, others


def _find(name: str, model: Mapping[str, Layer], flat: Mapping[tuple[bool, str], Layer]) -> Layer | None:
    for prefix, is_text in _KOHYA:
        if name.startswith(prefix):
            return flat.get((is_text, name.removeprefix(prefix).removeprefix("text_model_")))
    plain = name.removeprefix(_PEFT)
    owner = re.match(r"(unet|flexible_unet|text_encoder)\.", plain)
    plain = plain[owner.end() :] if owner else plain
    for found in (model.get(candidate) for candidate in _candidates(plain.removeprefix("text_model."))):
        if found is not None and (owner is None or (found.component == TEXT) == (owner[1] == TEXT)):
            return found
    return None


def _candidates(plain: str) -> Iterator[str]:
    """The name, and what the attention's layers were called in diffusers' old layouts."""
    yield plain
    head, _, last = plain.replace(".processor.", ".").rpartition(".")
    yield f"{head}.{last}.0" if last == "to_out" else f"{head}.{last}"
    yield f"{head}.{_OLD_TEXT.get(last, last)}"


def _misfit(part: Mapping[str, str], layer: Layer | None, stored: Mapping[str, Entry]) -> str:
    """Why a part cannot be applied; empty if it can."""
    if _DOWN not in part or _UP not in part:
        return f"lacks its {_UP if _DOWN in part else _DOWN} matrix"
    if layer is None:
        return "names a layer that the model does not have"
    down, up = stored[part[_DOWN]], stored[part[_UP]]
    if {down.dtype, up.dtype} - weights.WIDTHS.keys():
        return f"has matrices of the types {down.dtype} and {up.dtype}"
    rank, sides = down.shape[:1], layer.shape[2:]
    if down.shape != rank + layer.shape[1:] or up.shape != layer.shape[:1] + rank + (1,) * len(sides):
        found, fits = [*up.shape, "x", *down.shape], list(layer.shape)
        return f"has matrices of another shape ({' '.join(map(str, found))}) than the model's layer ({fits})"
    return ""


class _Strength:
    """By how much a part's product is multiplied: alpha / rank, or alpha / sqrt(rank) with rank stabilization
    (Kalajdzievski, 2023). Alpha stands in a tensor, in the file's metadata, in PEFT's adapter_config.json, or is the
    rank."""

    def __init__(self, file: Path, parts: Mapping[str, Any]) -> None:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        self._config: dict[str, Any] = {}
        self._by_component = "lora_adapter_metadata" in metadata
        try:
            if self._by_component:
                self._config = json.loads(metadata["lora_adapter_metadata"])
            elif any(name.startswith(_PEFT) for name in parts):
                self._config = json.loads((file.parent / "adapter_config.json").read_text(encoding="utf-8"))
            self._config = dict(self._config)
        except FileNotFoundError:
            raise LoraUnusable(
                f"{file} has PEFT's layout, whose strength stands in adapter_config.json; put that file beside it."
            ) from None
        except (OSError, TypeError, ValueError):
            raise LoraUnusable(f"The configuration of {file} cannot be read.") from None
        for field in ("use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "corda_config", "eva_config"):
            if used := [key for key, value in self._config.items() if key.rpartition(".")[2] == field and value]:
                raise LoraUnusable(f"{file} was made with {used[0]}, which cannot be merged.")

    def scale(self, name: str, rank: int, alpha: Tensor | None) -> float:
        if alpha is not None:
            return float(alpha.float().flatten()[0]) / rank if alpha.numel() else math.nan
        owner, _, module = name.removeprefix(_PEFT).partition(".") if self._by_component else ("", "", name)
        config = {
            key.removeprefix(f"{owner}."): value
            for key, value in self._config.items()
            if not self._by_component or key.startswith(f"{owner}.")
        }
        found = config.get("lora_alpha", rank)
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?(?:{pattern})", module):
                found = value
                break
        return float(found) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def refused(lora: Lora) -> LoraUnusable:
    """The sentence that refuses a LoRA of which something does not fit."""
    name, reason = next(iter(lora.skipped.items()))
    return LoraUnusable(
        f"{lora.file} does not fit the model: {len(lora.skipped)} of its {len(lora.skipped) + len(lora.changes)} parts "
        f"would be left out, {name} for one, which {reason}; --partial merges the rest."
    )


def locate(given: str) -> tuple[Path, float]:
    """FILE or FILE:WEIGHT as a file and a weight. Raises SettingsError if there is no such file or weight."""
    path, _, text = given.rpartition(":")
    file, weight = (Path(given), 1.0) if not path or Path(given).is_file() else (Path(path), _weight(text))
    if not file.is_file():
        raise SettingsError(f"There is no LoRA file {str(file)!r}; name a safetensors file, with :WEIGHT behind it.")
    if file.suffix.lower() in weights.PICKLED:
        raise SettingsError(f"The LoRA {file} is a pickle that could run code; only safetensors are read.")
    if not math.isfinite(weight) or weight == 0:
        raise SettingsError(f"The weight of {file.name} is {text!r}; it must be a number other than 0, such as 0.8.")
    return file, weight


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
