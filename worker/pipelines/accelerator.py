"""An execution provider of ONNX Runtime that runs graphs on one device.

Providers that choose kernels by timing them compile engines, of which two of one graph may give different bytes. They
are made once, shared as hashed artefacts, and the hash of all of a model's engines is in the class.
"""

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from services.core.model.errors import SettingsError
from worker import activity
from worker.model.artefacts import Artefacts
from worker.pipeline import CompileFailed
from worker.pipelines import onnxruntime_providers
from worker.pipelines.onnxruntime_graphs import Graph
from worker.pipelines.onnxruntime_providers import Chosen


class Accelerator:
    """A worker.pipelines.onnx.Runtime."""

    def __init__(self, chosen: Chosen) -> None:
        self._chosen, self._providers = chosen, chosen.options
        self.distribution, _ = onnxruntime_providers.distribution()
        self.device, self.kind = chosen.device, chosen.kind
        self.has_engines = bool(chosen.provider.engine)
        self._engines: dict[Path, Path] = {}  # without their suffixes

    def start(self, file: Path) -> None:
        try:
            Graph(file, "fp32", self._chosen.threads, self._providers)
        except CompileFailed as error:
            raise SettingsError(str(error)) from None

    def build(self, files: Iterable[Path], cache: Path, model: str, revision: str) -> str:
        fixed = {
            name: {key: options[key] for key in options if key != "device_id"} for name, options in self._providers
        }
        made_by = {"kind": self.kind, "runtime": onnxruntime_providers.distribution(), "options": fixed}
        artefacts = Artefacts(cache, f"{model}-{revision}-{self._chosen.word}", made_by)
        wanted, digest = sorted(set(files)), hashlib.sha256()
        for number, file in enumerate(wanted, 1):
            part = f"{file.parent.name}-{file.stem}"  # the folder is named by a hash of all that decides the graph
            with activity.doing(f"building engine {number} of {len(wanted)}"):
                self._engines[file] = artefacts.get(part, partial(self._build, file, part)) / part
            for name, content in sorted(artefacts.contents(part).items()):
                digest.update(f"{name}\0{content}\n".encode())
        return digest.hexdigest()[:12]

    def _build(self, file: Path, part: str, into: Path) -> None:
        context, beside = str(into / f"{part}.onnx"), str(into / f"{part}.mxr")
        if self._chosen.provider.engine == "context":
            entries = {"ep.context_enable": "1", "ep.context_file_path": context, "ep.context_embed_mode": "1"}
            Graph(file, "fp32", self._chosen.threads, self._providers, entries)
        else:
            save = {"migraphx_save_compiled_model": "1", "migraphx_save_model_path": beside}
            Graph(file, "fp32", self._chosen.threads, self._with(save))
        if not any(into.iterdir()):
            raise CompileFailed(f"ONNX Runtime's {self._chosen.provider.name} wrote no engine for {file.name}.")

    def graph(self, file: Path, precision: str) -> Graph:
        engine, threads = self._engines.get(file), self._chosen.threads
        if engine is None:
            return Graph(file, precision, threads, self._providers)
        if self._chosen.provider.engine == "context":
            return Graph(Path(f"{engine}.onnx"), precision, threads, self._providers)
        load = {"migraphx_load_compiled_model": "1", "migraphx_load_model_path": f"{engine}.mxr"}
        return Graph(file, precision, threads, self._with(load))

    def _with(self, more: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
        (name, fixed), *others = self._providers
        return [(name, fixed | more), *others]
