"""What a model directory must look like, checked by its file names and small JSON files alone.

Imports no torch: the Celery parent asks before it forks, so that a bad directory is one sentence and no respawn loop.
The layout is that of diffusers: one folder a component, a `model_index.json` beside them. What Presswork itself wants
to know stands in that file's "presswork" block; every field of it may be left out.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.core.errors import SettingsError

NETWORKS = ("text_encoder", "unet", "vae")
COMPONENTS = (*NETWORKS, "tokenizer", "scheduler")
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py")
SIZE_UNIT = 8  # pixels a latent stands for


@dataclass(frozen=True, slots=True)
class Index:
    """What `model_index.json` says of the model. Sizes are (width, height) in pixels."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    default_size: tuple[int, int]
    default_steps: int
    default_guidance_scale: float
    max_steps: int


def check_model_dir(path: str | Path) -> None:
    """Raises SettingsError, in one sentence, unless `path` holds every component and nothing that could run code."""
    if not str(path):
        raise SettingsError("PRESSWORK_MODEL_DIR is not set; it must name the directory of a model.")
    folder = Path(path)
    if not folder.is_dir():
        raise SettingsError(f"PRESSWORK_MODEL_DIR is {str(path)!r}, which is not a directory.")
    _refuse_unsafe(folder)
    read_index(folder)
    if (folder / "flexible_unet").exists():
        # The `unet` beside it is a placeholder of another architecture; it would load, and draw something else.
        raise SettingsError(f"The model directory {folder} holds a flexible_unet, which this pipeline cannot load.")
    for name in NETWORKS:
        _read_object(folder / name / "config.json")
        if not any((folder / name).glob("*.safetensors")):
            raise SettingsError(f"The model directory {folder} has no *.safetensors file in {name}.")
    tokenizer = folder / "tokenizer"
    if not all((tokenizer / name).is_file() for name in ("vocab.json", "merges.txt")):
        _read_object(tokenizer / "tokenizer.json")
    _read_object(folder / "scheduler" / "scheduler_config.json")


def read_index(folder: Path) -> Index:
    """The model's name, sizes and defaults. Raises SettingsError where the file is missing or makes no sense."""
    file = folder / "model_index.json"
    index = _read_object(file)
    block = index.get("presswork", {})
    name = index.get("_name_or_path")
    try:
        sizes = tuple(_size(size) for size in block.get("sizes", [[512, 512]]))
        said = Index(
            name=str(block.get("name") or name or folder.resolve().name),
            sizes=sizes,
            default_size=_size(block.get("default_size", sizes[0])),
            default_steps=int(block.get("default_steps", 10)),
            default_guidance_scale=float(block.get("default_guidance_scale", 7.5)),
            max_steps=int(block.get("max_steps", 50)),
        )
    except (AttributeError, IndexError, TypeError, ValueError):
        raise SettingsError(f'The "presswork" block of {file} cannot be read; sizes are [[512, 512]], say.') from None
    if said.default_size not in sizes or not 1 <= said.default_steps <= said.max_steps <= 1000:
        raise SettingsError(f'The "presswork" block of {file} has defaults that it does not allow itself.')
    return said


def revision(folder: Path) -> str:
    """`revision-` and 12 hex digits of a sha256 over the components' weights and configs, by sorted file name."""
    digest = hashlib.sha256()
    files = [file for name in COMPONENTS for file in (folder / name).rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file.relative_to(folder).as_posix()):
        if file.suffix not in (".json", ".txt", ".safetensors"):
            continue
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"revision-{digest.hexdigest()[:12]}"


def _refuse_unsafe(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in UNSAFE:
            kind = "code" if file.suffix.lower() == ".py" else "pickled weights, which could run code when loaded"
            found = file.relative_to(folder)
            raise SettingsError(f"The model directory {folder} holds {found}: {kind}; only safetensors are loaded.")


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"The model directory lacks {file.parent.name}/{file.name} ({file}).") from None
    except (OSError, ValueError):
        raise SettingsError(f"The model's {file} cannot be read as JSON.") from None
    if not isinstance(value, dict):
        raise SettingsError(f"The model's {file} must hold a JSON object.")
    return value


def _size(value: Any) -> tuple[int, int]:
    width, height = (int(side) for side in value)
    if min(width, height) < SIZE_UNIT or width % SIZE_UNIT or height % SIZE_UNIT:
        raise ValueError
    return width, height
