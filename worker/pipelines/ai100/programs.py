"""The programs of a model: exported, compiled, kept among the artefacts, and found again.

The key of a program is all that decides it: the graph's hash, the versions of the SDK and of the compiler, the card,
the cores, the batch, the model's revision and the compiler's flags.
"""

import hashlib
import itertools
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.core.model import long_prompts
from worker import activity
from worker.model import directory, static_graphs
from worker.model.artefacts import Artefacts
from worker.model.exported import LIBRARIES
from worker.model.static_graphs import Exported, Graph
from worker.pipelines.ai100 import compiling
from worker.pipelines.ai100.cards import TEXT_ENCODER, UNET, VAE_ENCODER, Card
from worker.pipelines.ai100.compiling import Overrides, Say
from worker.pipelines.ai100.sdk import COMPILERS, Sdk, SdkMissing

SOURCES = (
    "static_*.py", "onnx_files.py", "checkpoint.py", "networks.py", "unet.py", "flexible_unet.py", "stock_unet.py",
    "text.py", "latent_scale.py", "weights.py", "vae_config.py", "stages.py", "group_norm.py",
)  # fmt: skip
GRAPHS = "graphs"
PRECISION = "fp32"  # of the graphs; the compiler converts them


@dataclass(frozen=True, slots=True)
class Target:
    """What programs are compiled for. `sdk_version` is the runtime's."""

    sdk: Sdk
    sdk_version: str
    card: Card
    hardware: str
    overrides: Overrides


class Programs:
    """The programs of the model in `folder`, for batches of `batch` images. Processes may share `cache`."""

    def __init__(self, folder: Path, cache: Path, target: Target, batch: int) -> None:
        self._folder, self._cache, self._target, self.batch = folder, cache, target, batch
        self.index, self.revision = directory.read_index(folder), directory.revision(folder)
        self.compilers: set[str] = set()  # the versions of those that made the programs found
        self._exports: dict[tuple[int, int], Exported] = {}
        self._lock = threading.Lock()

    @property
    def chunks(self) -> range:
        """The lengths of prompts, in chunks, that the model reads."""
        return range(1, long_prompts.MAX_CHUNKS + 1 if self.index.long_prompts else 2)

    def chunks_of(self, network: str) -> range:
        return self.chunks if network == UNET else range(1, 2)

    def exported(self, size: tuple[int, int]) -> Exported:
        """The graphs for that size. Exporting missing ones takes seconds to minutes."""
        with self._lock:
            if size not in self._exports:
                key = {"revision": self.revision, "size": size, "batch": self.batch, "chunks": list(self.chunks)}
                artefacts = Artefacts(self._cache, f"{self._name}-export", key | _decides())
                self._exports[size] = static_graphs.read(artefacts.get(GRAPHS, lambda into: self._export(size, into)))
            return self._exports[size]

    def graph(self, network: str, size: tuple[int, int], chunks: int = 1) -> Graph:
        """What a network's program is compiled from."""
        return self.exported(size).graph(network, 1 if network == VAE_ENCODER else self.batch, chunks)

    def find(self, network: str, size: tuple[int, int], cores: int, chunks: int = 1, say: Say = lambda _: None) -> Path:
        """The folder of a program, compiled if it is missing.

        Raises:
            SdkMissing: it is missing, and there is no compiler.
            CompileFailed: the compiler fails.
        """
        decides = self._decides(network, size, cores, chunks)
        self.compilers.add(decides["compiler"])

        def make(into: Path) -> None:
            self.compile_into(into, network, size, cores, chunks, say)

        try:
            return Artefacts(self._cache, self._name, decides).get(network, make)
        except SdkMissing as error:
            raise SdkMissing(f"{error} {self._others(decides)}".strip()) from None

    def find_all(self, networks: Iterable[tuple[str, int]], sizes: Iterable[tuple[int, int]]) -> None:
        """Compiles what is missing of these networks, on so many cores each. Raises as `find` does."""
        for size, (network, cores) in itertools.product(sizes, networks):
            for chunks in self.chunks_of(network):
                decides = self._decides(network, size, cores, chunks)
                self.compilers.add(decides["compiler"])
                if not Artefacts(self._cache, self._name, decides).has(network):
                    self.find(network, size, cores, chunks)

    def compile_into(
        self, into: Path, network: str, size: tuple[int, int], cores: int, chunks: int, say: Say
    ) -> None:  # fmt: skip
        """Compiles a program, whether there is one or not. Raises as `find` does."""
        graph, told = self.exported(size).path(self.graph(network, size, chunks)), self.flags(network, cores)
        with activity.doing(f"compiling the {network} for {cores} cores"):
            compiling.compile_into(into, self._target.sdk, self._target.hardware, told, graph, say)

    def _decides(self, network: str, size: tuple[int, int], cores: int, chunks: int) -> dict[str, Any]:
        """A program's key. Where there is no compiler, that of a program which another machine's has made."""
        exported, target = self.exported(size), self._target
        graph = self.graph(network, size, chunks)
        found = {
            "network": network, "cores": cores, "batch": self.batch, "chunks": chunks,
            "size": None if network == TEXT_ENCODER else size,  # the same graph for all of them
            "card": target.card.key, "hardware": target.hardware, "sdk": target.sdk_version, "revision": self.revision,
            "flags": self.flags(network, cores),
            "graph": [exported.files[name]["sha256"] for name in (graph.file, graph.weights)],
            "compiler": target.sdk.compiler_version(),
        }  # fmt: skip
        if any(map(target.sdk.tool, COMPILERS)):
            return found
        wanted = json.loads(json.dumps(found))
        made = [key.get("compiler", "") for key in self._keys() if key | {"compiler": wanted["compiler"]} == wanted]
        return found | {"compiler": max(made, default=found["compiler"])}

    def command(self, network: str, cores: int, chunks: int = 1) -> list[str]:
        """What `find` would run where the SDK is, with placeholders for what is not exported yet."""
        sdk = self._target.sdk
        compiler = next(filter(None, map(sdk.tool, COMPILERS)), sdk.folder / "exec" / COMPILERS[0])
        batch = 1 if network == VAE_ENCODER else self.batch
        name = f"{network}-{batch}{f'-{chunks}-chunks' if chunks > 1 else ''}.onnx"
        told = self.flags(network, cores)
        return compiling.command(compiler, self._target.hardware, told, Path("EXPORT", name), Path("PROGRAM"))

    def flags(self, network: str, cores: int) -> tuple[str, ...]:
        rows = compiling.rows(network, 1 if network == VAE_ENCODER else self.batch)
        return compiling.flags(network, self._target.card, cores, rows, self._target.overrides)

    @property
    def _name(self) -> str:
        return f"{self.index.name}-{self.revision}-ai100"

    def _export(self, size: tuple[int, int], into: Path) -> None:
        from worker.model import static_export

        made = into / GRAPHS
        with activity.doing("exporting the networks"):
            static_export.export(
                self._folder, made, size=size, batches=[self.batch], precision=PRECISION, chunks=list(self.chunks),
                image_to_image=True,
            )  # fmt: skip
        for file in made.iterdir():
            file.rename(into / file.name)
        made.rmdir()

    def _others(self, wanted: dict[str, Any]) -> str:
        """Says how the program that is most like the wanted one differs from it."""
        wanted = json.loads(json.dumps(wanted))
        names = ("sdk", "compiler", "card", "cores", "batch", "size")
        found = [
            [f"{name} {other.get(name)} and not {wanted[name]}" for name in names if other.get(name) != wanted[name]]
            for other in self._keys()
            if all(other.get(name) == wanted[name] for name in ("network", "chunks"))
        ]
        closest = min(filter(None, found), key=len, default=[])
        return f"There is one for {', '.join(closest)}." if closest else ""

    def _keys(self) -> Iterator[dict[str, Any]]:
        for file in sorted(self._cache.glob(f"{self._name}/*/key.txt")):
            found = json.loads(file.read_text(encoding="utf-8"))
            if (file.with_name(compiling.PROGRAM)).exists():
                yield found


def _decides() -> dict[str, str]:
    """The code and the libraries that decide a graph."""
    digest = hashlib.sha256()
    folder = Path(directory.__file__).parent
    for pattern in SOURCES:
        for file in sorted(folder.glob(pattern)):
            digest.update(file.read_bytes())
    return {"sources": digest.hexdigest()} | {name: version(name) for name in LIBRARIES}
