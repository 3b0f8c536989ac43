"""Makes a model with random weights in the published layout: for tests, for benchmarks, for trying things out.

Its pictures mean nothing. Decided by the preset and the seed alone; nothing is downloaded.
"""

import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import PressworkError
from worker.model import directory, vocabulary
from worker.model.presets import PRESETS, Preset

LIBRARIES = {"text_encoder": ["transformers", "CLIPTextModel"], "vae": ["diffusers", "AutoencoderKL"]}


class FolderTaken(PressworkError):
    """The directory for the model is not empty."""


def make(folder: Path, preset: str = "tiny", seed: int = 0, say: Callable[[str], None] | None = None) -> str:
    """Writes the model of that name in presets.PRESETS to `folder` and returns its revision. `say` hears of progress.

    Raises FolderTaken unless `folder` is absent or empty. What is there is whole, or not there: it is written beside
    and renamed.
    """
    if preset not in PRESETS:
        raise PressworkError(f"There is no preset {preset!r}; there are {', '.join(PRESETS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderTaken(f"{folder} is not empty; the model goes into a directory of its own.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        draft = Path(beside) / "model"
        draft.mkdir()
        _write(draft, PRESETS[preset], seed, say or (lambda _: None))
        directory.check(draft)
        draft.rename(folder)
    return directory.revision(folder)


def _write(folder: Path, preset: Preset, seed: int, say: Callable[[str], None]) -> None:
    from worker.model import networks  # here, and not above: --help and refusals answer at once

    for name, config in preset.configs.items():
        (folder / name).mkdir()
        _write_json(folder / name / "config.json", config)
        shapes = {key: tuple(tensor.shape) for key, tensor in networks.build(name, config).state_dict().items()}
        say(f"{name}: {sum(int(np.prod(shape)) for shape in shapes.values()):,} parameters")
        _write_weights(folder / name, shapes, preset, seed)
    vocabulary.write(folder / "tokenizer", preset.configs["text_encoder"]["max_position_embeddings"])
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", preset.scheduler)
    _write_json(folder / "model_index.json", _index(preset))


def _index(preset: Preset) -> dict[str, Any]:
    """As published: DeciDiffusion's names a class of its own, and a stock U-Net where it means its flexible one."""
    flexible = preset.unet == directory.FLEXIBLE
    return {
        "_class_name": "DeciDiffusionPipeline" if flexible else "StableDiffusionPipeline",
        "scheduler": ["diffusers", preset.scheduler["_class_name"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        **LIBRARIES,
        "presswork": preset.block,
    }


def _write_weights(folder: Path, shapes: dict[str, tuple[int, ...]], preset: Preset, seed: int) -> None:
    """The file under the name, with the prefix and of the dtype that are published for the component."""
    from safetensors.numpy import save_file

    text, half = folder.name == "text_encoder", folder.name == directory.FLEXIBLE
    tensors = {}
    for name, shape in shapes.items():
        stored = f"text_model.{name.removeprefix('text_model.')}" if text else name
        values = _random(f"{folder.name}/{stored}", shape, seed, preset)
        tensors[stored] = values.astype(np.float16) if half else values
    file = folder / ("model.safetensors" if text else "diffusion_pytorch_model.safetensors")
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _random(name: str, shape: tuple[int, ...], seed: int, preset: Preset) -> NDArray[np.float32]:
    """Normal, with the deviation that keeps that of a layer's inputs (LeCun et al., 1998): 1 over the root of how many
    there are. So activations stay finite in FP16 at any size. Drawn for each tensor by its own name."""
    chance = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = chance.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        values *= np.float32(0.05)
        return values + np.float32(1.0) if name.endswith("weight") else values  # a norm's weights, else a bias
    inputs = 1 if "embedding.weight" in name else int(np.prod(shape[1:]))
    loudness = float(np.prod([by for part, by in preset.louder.items() if part in name]))
    values *= np.float32(loudness / inputs**0.5)
    return values


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
