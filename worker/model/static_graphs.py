"""An export for accelerators as it lies on disk: ONNX graphs of static shapes and the manifest that describes them.

Imports no torch. `static_export.py` writes it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.core.model.errors import SettingsError
from worker.model.latent_scale import LatentScale
from worker.model.text import Prompts

FORMAT = 1
MANIFEST, PROMPTS = "manifest.json", "prompts.json"
TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER = "text_encoder", "unet", "vae_decoder", "vae_encoder"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output. `dtype` is numpy's name of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file. `batch` is the number of images: a U-Net has twice as many rows, first those of the negative
    prompts, then those of the prompts. Its text states have the tokens of `chunks` chunks of a prompt."""

    network: str
    batch: int
    chunks: int
    file: str
    weights: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Clipped:
    """A constant with `count` numbers outside FP16's range, of which `extreme` is the largest by amount."""

    network: str
    constant: str
    count: int
    extreme: float


@dataclass(frozen=True, slots=True)
class Exported:
    """The manifest of an export in `folder`. `size` is (width, height) in pixels."""

    folder: Path
    model: str
    revision: str
    size: tuple[int, int]
    batches: tuple[int, ...]
    precision: str
    opset: int
    latent_channels: int
    latent_scale: LatentScale
    graphs: tuple[Graph, ...]
    clipped: tuple[Clipped, ...]
    files: Mapping[str, Mapping[str, Any]]  # name -> bytes, sha256

    def graph(self, network: str, batch: int, chunks: int = 1) -> Graph:
        """Raises SettingsError, in one sentence, if it was not exported."""
        for graph in self.graphs:
            if (graph.network, graph.batch, graph.chunks) == (network, batch, chunks):
                return graph
        of = f" and prompts of {chunks} chunks" if chunks > 1 else ""
        raise SettingsError(f"The export in {self.folder} has no {network} for batches of {batch}{of}.")

    def path(self, graph: Graph) -> Path:
        return self.folder / graph.file

    def prompts(self) -> Prompts:
        """The tokenizer, without the checkpoint and without transformers."""
        return Prompts.from_json((self.folder / PROMPTS).read_text("utf-8"))

    def to_json(self) -> dict[str, Any]:
        """What the manifest holds."""
        return {"format": FORMAT} | {name: value for name, value in asdict(self).items() if name != "folder"}

    def write(self) -> None:
        """Writes the manifest, last of all files."""
        (self.folder / MANIFEST).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    def table(self) -> str:
        """For people: what was exported and what was clipped, a line each."""
        batches = " and ".join(filter(None, [", ".join(map(str, self.batches[:-1])), str(self.batches[-1])]))
        size = sum(entry["bytes"] for entry in self.files.values()) / 1e6
        lines = [
            f"{self.model}, {self.revision}: {len(self.graphs)} graphs, {size:,.0f} MB",
            f"{self.size[0]}x{self.size[1]}, batches of {batches}, {self.precision}, opset {self.opset}",
        ]
        lines += [
            f"clipped to FP16's range: {cut.count} numbers of {cut.network}'s {cut.constant}, up to {cut.extreme:.3g}"
            for cut in self.clipped
        ]
        return "\n".join(lines)


def read(folder: Path) -> Exported:
    """The export in `folder`. Raises SettingsError, in one sentence, if there is none, or if files are missing or of
    another size; `damaged` reads them."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT:
            raise SettingsError(f"The export in {folder} was made by another version of Presswork; export it again.")
        found["graphs"] = tuple(_graph(entry) for entry in found["graphs"])
        found["clipped"] = tuple(Clipped(**entry) for entry in found["clipped"])
        found["latent_scale"] = _scale(found["latent_scale"])
        found |= {key: tuple(found[key]) for key in ("size", "batches")}
        exported = Exported(folder, **found)
        sizes = {name: (folder / name).stat().st_size == entry["bytes"] for name, entry in exported.files.items()}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SettingsError(f"There is no whole export in {folder}: {Path(error.filename).name} is missing.") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise SettingsError(f"The export's {folder / MANIFEST} cannot be read; export the model again.") from None
    if wrong := [name for name, same in sizes.items() if not same]:
        raise SettingsError(f"The export in {folder} is damaged: {wrong[0]} has another size than when it was written.")
    return exported


def damaged(exported: Exported) -> list[str]:
    """The files whose sha256 is not the manifest's."""
    found = hashed(exported.folder)
    return [name for name, entry in exported.files.items() if found.get(name) != entry]


def hashed(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of each file but the manifest, by name."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.name != MANIFEST:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
    return found


def _graph(entry: dict[str, Any]) -> Graph:
    for side in ("inputs", "outputs"):
        entry[side] = tuple(Tensor(one["name"], one["dtype"], tuple(one["shape"])) for one in entry[side])
    return Graph(**entry)


def _scale(entry: dict[str, Any]) -> LatentScale:
    return LatentScale(entry["scaling"], entry["shift"], tuple(entry["mean"]), tuple(entry["std"]))
