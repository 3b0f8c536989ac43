"""A component's weights on disk: which file is used, and what its safetensors header says.

Imports no torch. The format: 8 bytes little-endian length, a JSON header of that length, the tensors' bytes.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from services.core.model.errors import SettingsError

# Names used by diffusers and transformers; the first that exists is used.
NAMES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
)
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes; the dtypes that can be loaded
_OTHER_WIDTHS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_MAX_HEADER = 100_000_000  # bytes, the format's own limit
_POINTER = b"version https://git-lfs.github.com/spec/"


class Entry(NamedTuple):
    """One tensor of a file: its dtype as the format names it (F16, I64), and its shape."""

    dtype: str
    shape: tuple[int, ...]


def find(folder: Path) -> Path:
    """The safetensors file of the component in `folder`. Files that could run code when loaded are ignored.

    Raises SettingsError if there is none, or if it is split over several files.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    part = folder.name
    if any(folder.glob("*.safetensors.index.json")):
        raise SettingsError(
            f"The weights of {part} in {folder.parent} are split over several files; they must be one safetensors file."
        )
    pickled = sorted(file.name for file in folder.glob("*") if file.suffix.lower() in PICKLED)
    if pickled:
        raise SettingsError(
            f"The model directory {folder.parent} has only {part}/{pickled[0]}, a pickle that could run code; only "
            f"safetensors are loaded: convert it on a disposable machine, with torch.load(weights_only=True) and "
            f"safetensors.torch.save_file."
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    found = f", only {others[0]}" if others else ""
    raise SettingsError(f"The model directory {folder.parent} has no *.safetensors file {NAMES[0]!r} in {part}{found}.")


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, by name, from its header alone.

    Raises SettingsError if the file is a git-lfs pointer, no safetensors file, or of another size than its header says.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(max(8, len(_POINTER)))
            if start == _POINTER:
                raise SettingsError(
                    f"The model's {file} is a git-lfs pointer, not the weights: fetch the real file with "
                    f"`git lfs pull`, or download it."
                )
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8:
                raise SettingsError(f"The model's {file} is cut short: it holds {len(start)} bytes.")
            if length > _MAX_HEADER:
                raise SettingsError(f"The model's {file} is no safetensors file.")
            stream.seek(8)
            text = stream.read(length)
        size = file.stat().st_size
    except OSError as error:
        raise SettingsError(f"The model's {file} cannot be read: {error.strerror or error}.") from None
    if text[:1] not in (b"{", b""):
        raise SettingsError(f"The model's {file} is no safetensors file.")
    if len(text) < length:
        raise SettingsError(f"The model's {file} is cut short: it ends within its header.")
    try:
        entries, end = _entries(json.loads(text))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise SettingsError(f"The model's {file} is no safetensors file: its header cannot be read.") from None
    if size != 8 + length + end:
        wrong = "is cut short" if size < 8 + length + end else "is too long"
        raise SettingsError(f"The model's {file} {wrong}: {size:,} bytes, and its header says {8 + length + end:,}.")
    return entries


def starts(file: Path) -> dict[str, int]:
    """Where each tensor's bytes begin in a file that `read_header` has accepted."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {name: 8 + length + one["data_offsets"][0] for name, one in header.items() if name != "__metadata__"}


def _entries(header: Mapping[str, Any]) -> tuple[dict[str, Entry], int]:
    """The tensors, and where the last of their bytes ends. Raises ValueError if they overlap or leave gaps."""
    entries, spans = {}, []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        entry = Entry(str(tensor["dtype"]), tuple(int(side) for side in tensor["shape"]))
        begin, end = tensor["data_offsets"]
        width = (WIDTHS | _OTHER_WIDTHS).get(entry.dtype)
        if width is not None and end - begin != width * math.prod(entry.shape):
            raise ValueError
        entries[name] = entry
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached or end < begin:
            raise ValueError
        reached = end
    return entries, reached
