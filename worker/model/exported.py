"""A model that runs without its checkpoint: its graphs and tokenizer, cached as artefacts and exported when missing.

Imports diffusers and transformers only if something has to be exported.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from services.core.model.specs import Shape
from worker import activity
from worker.model import directory
from worker.model.artefacts import Artefacts
from worker.model.directory import SIZE_UNIT
from worker.model.text import Prompts

if TYPE_CHECKING:
    from worker.model.export import Exporter

SOURCES = (
    "exported.py", "export.py", "onnx_files.py", "checkpoint.py", "stages.py", "networks.py", "unet.py",
    "flexible_unet.py", "stock_unet.py", "text.py", "latent_scale.py",
)  # fmt: skip
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "onnx", "onnx-ir", "onnxscript")
FACTS, TIME = "facts", "time.onnx"


@dataclass(frozen=True, slots=True)
class Graphs:
    """The graph files of one shape and batch size; `export.Exporter` documents them."""

    text: Path
    time: Path
    denoiser: Path
    decoder: Path


class Exported:
    """The model in `folder`, with its artefacts under `cache`.

    The graphs are the same for every device, runtime and precision. Their key is the model's revision, this code and
    the versions of the libraries that export them.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        """Raises SettingsError, in one sentence, if the model is unusable or the cache cannot be written."""
        self._folder = folder
        self.index, self.revision = directory.read_index(folder), directory.revision(folder)
        self.sampler_config = directory.read_sampler_config(
            folder
        )  # read from the model at each start: the cache must not hold an outdated sampler
        self._artefacts = Artefacts(cache, f"{self.index.name}-{self.revision}", _decides(self.revision))
        self._exporter: Exporter | None = None
        self._facts = json.loads((self._get(FACTS, _write_facts) / f"{FACTS}-model.json").read_text("utf-8"))

    @cached_property
    def prompts(self) -> Prompts:
        return Prompts.from_json(self._facts["prompts"])

    @property
    def latent_channels(self) -> int:
        return int(self._facts["latent_channels"])

    @property
    def time(self) -> Path:
        """The graph that embeds timesteps, which every shape uses."""
        return self._get(FACTS, _write_facts) / TIME

    def graphs(self, shape: Shape, batch: int, part: int) -> Graphs:
        """The graphs for that shape, the decoder's for `part` images at once. Exporting missing ones takes seconds."""
        height, width = shape.height // SIZE_UNIT, shape.width // SIZE_UNIT
        size, guided = f"{shape.width}x{shape.height}-{batch}", "guided" if shape.guided else "unguided"
        chunks = shape.prompt_chunks
        long = f"-{chunks}-chunks" if chunks > 1 else ""
        found = Graphs(
            text=self._graph(
                f"text-{batch}", "text encoder, 1 of 3", lambda exporter, file: exporter.write_text(file, batch)
            ),
            time=self.time,
            denoiser=self._graph(
                f"denoiser-{size}-{guided}{long}",
                "U-Net, 2 of 3",
                lambda exporter, file: exporter.write_denoiser(
                    file, batch, height, width, guided=shape.guided, chunks=chunks
                ),
            ),
            decoder=self._graph(
                f"decoder-{shape.width}x{shape.height}-{part}",
                "decoder, 3 of 3",
                lambda exporter, file: exporter.write_decoder(file, part, height, width),
            ),
        )
        self._exporter = None  # frees gigabytes, for a full-size model
        return found

    def encoder(self, shape: Shape) -> Path:
        """The graph that encodes one input picture of that size."""
        height, width = shape.height // SIZE_UNIT, shape.width // SIZE_UNIT
        found = self._graph(
            f"encoder-{shape.width}x{shape.height}",
            "encoder",
            lambda exporter, file: exporter.write_encoder(file, height, width),
        )
        self._exporter = None
        return found

    def _graph(self, name: str, what: str, write: Callable[["Exporter", Path], None]) -> Path:
        file = f"{name}.onnx"

        def export(exporter: "Exporter", into: Path) -> None:
            with activity.doing(f"exporting the {what}"):
                write(exporter, into / file)

        return self._get(name, export) / file

    def _get(self, part: str, write: Callable[["Exporter", Path], None]) -> Path:
        return self._artefacts.get(part, lambda into: write(self._load(), into))

    def _load(self) -> "Exporter":
        if self._exporter is None:
            from worker.model import checkpoint
            from worker.model.export import Exporter

            self._exporter = Exporter(checkpoint.load(self._folder))
        return self._exporter


def _write_facts(exporter: "Exporter", into: Path) -> None:
    from worker.model.export import WEIGHTS

    with activity.doing("exporting the weights"):
        exporter.write_weights(into / WEIGHTS)
    exporter.write_time(into / TIME)
    facts = {"prompts": exporter.prompts.to_json(), "latent_channels": exporter.latent_channels}
    (into / f"{FACTS}-model.json").write_text(json.dumps(facts), encoding="utf-8")


def _decides(revision: str) -> dict[str, str]:
    """Everything that decides an exported graph."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return {"revision": revision, "sources": digest.hexdigest()} | {name: version(name) for name in LIBRARIES}
