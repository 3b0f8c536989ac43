"""Makes a model with random weights in the published layout: for tests, benchmarks and experiments.

Its pictures are meaningless. The weights depend only on the preset and the seed; nothing is downloaded.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import PressworkError
from worker.model import directory, drafts, vocabulary
from worker.model.presets import PRESETS, Preset

LIBRARIES = {"text_encoder": ["transformers", "CLIPTextModel"], "vae": ["diffusers", "AutoencoderKL"]}


def make(folder: Path, preset: str = "tiny", seed: int = 0, say: Callable[[str], None] | None = None) -> str:
    """Writes the preset's model to `folder` and returns its revision. Calls `say` with lines about the progress.

    The folder appears complete or not at all: the model is written beside it and renamed.

    Raises FolderTaken unless `folder` is absent or empty.
    """
    if preset not in PRESETS:
        raise PressworkError(f"There is no preset {preset!r}; there are {', '.join(PRESETS)}.")
    drafts.check_free(folder, "the model")
    with drafts.draft(folder) as draft:
        _write(draft, PRESETS[preset], seed, say or (lambda _: None))
        directory.check(draft)
    return directory.revision(folder)


def _write(folder: Path, preset: Preset, seed: int, say: Callable[[str], None]) -> None:
    from worker.model import networks  # imports torch; --help and refusals must not wait for it

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
    """As published: DeciDiffusion names its own pipeline class, but a stock U-Net instead of its flexible one."""
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
    """Writes the file with the name, tensor prefix and dtype that are published for the component."""
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
    """Normal weights with deviation 1 / sqrt(number of inputs), which keeps the deviation of a layer's inputs (LeCun et
    al., 1998), so that activations stay finite in FP16 at any size. The generator is seeded by the tensor's name."""
    chance = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = chance.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        values *= np.float32(0.05)
        return values + np.float32(1.0) if name.endswith("weight") else values  # a norm's weights, else a bias
    inputs = 1 if "embedding.weight" in name else int(np.prod(shape[1:]))
    gain = float(np.prod([by for part, by in preset.weight_gain.items() if part in name]))
    values *= np.float32(gain / inputs**0.5)
    return values


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
