"""The stand-in's program file: an ONNX graph with its weights and a header, in one uncompressed zip archive.

A real program holds machine code; this one says in its header that it is for the stand-in alone.
"""

import json
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from worker.pipelines.ai100.cards import TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER

KIND = "program for Presswork's stand-in of a Cloud AI 100; no card can run it"
FILE = "programqpc.bin"
HEADER, GRAPH = "header.json", "model.onnx"
STAGES = {"text_states": TEXT_ENCODER, "noise_pred": UNET, "image": VAE_DECODER, "moments": VAE_ENCODER}


@dataclass(frozen=True, slots=True)
class Header:
    """`inputs` and `outputs`: name, ONNX element type, shape. `batch`: images of one run."""

    network: str
    cores: int
    batch: int
    version: str
    inputs: tuple[tuple[str, int, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, int, tuple[int, ...]], ...]
    kind: str = KIND


def pack(graph: Path, folder: Path, cores: int, version: str) -> Header:
    """Writes the program of an ONNX graph with static shapes. Raises ValueError for another graph."""
    model = onnx.load(str(graph), load_external_data=False)
    inputs, outputs = (tuple(map(_tensor, values)) for values in (model.graph.input, model.graph.output))
    network = next((STAGES[name] for name, _, _ in outputs if name in STAGES), graph.stem)
    rows = inputs[0][2][0]
    header = Header(network, cores, rows // 2 if network == UNET else rows, version, inputs, outputs)
    files = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        archive.writestr(HEADER, json.dumps(asdict(header)))
        archive.write(graph, GRAPH)
        for name in sorted(files):
            archive.write(graph.with_name(name), name)
    return header


def read(file: Path) -> Header:
    """The header of a program. Raises ValueError if it is none of the stand-in's."""
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                raise ValueError("its checksums do not match")
            found: dict[str, Any] = json.loads(archive.read(HEADER))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"it is no program of the stand-in: {error}") from None
    return Header(**{key: _tuples(value) for key, value in found.items()})


def unpack(file: Path) -> tuple["tempfile.TemporaryDirectory[str]", Path]:
    """A folder, which lives as long as the first of the two, and the graph in it."""
    folder = tempfile.TemporaryDirectory(prefix="ai100-stand-in-")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder.name)
    return folder, Path(folder.name) / GRAPH


def _tensor(value: Any) -> tuple[str, int, tuple[int, ...]]:
    kind = value.type.tensor_type
    if any(not one.HasField("dim_value") for one in kind.shape.dim):
        raise ValueError(f"{value.name} has no static shape")
    return value.name, kind.elem_type, tuple(one.dim_value for one in kind.shape.dim)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
