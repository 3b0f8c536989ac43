"""ONNX Runtime's execution providers besides the CPU's, chosen by name from those that this machine's build has.

Options are fixed, so that the same graph gives the same bytes. Two providers choose kernels by timing them while they
compile: what they compile is kept as a hashed artefact, and `accelerator.py` makes it part of the class.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from services.core.model.errors import SettingsError
from services.core.model.runtimes import PROVIDERS as NAMES
from worker.pipelines import onnxruntime_graphs
from worker.pipelines.cpu import cpu_kind

KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
Options = dict[str, str]


@dataclass(frozen=True, slots=True)
class Provider:
    """`name` is ONNX Runtime's, `brings` says where it comes from, `device` is the kind in PRESSWORK_DEVICE.

    `options` are made of the device's number and the number of threads. `engine` says how what it compiles is kept:
    as an ONNX file with the engine inside, as a file beside the graph, or not at all. `also` takes what it cannot do.
    """

    name: str
    brings: str
    device: str
    options: Callable[[int, int], Options]
    kind: Callable[[int, int], str]
    engine: Literal["", "context", "beside"] = ""
    also: str = ""


def nvidia_kind(number: int, _: int = 0) -> str:
    """The GPU's name. Raises SettingsError, in one sentence, if there is none of that number."""
    command = ["nvidia-smi", f"--id={number}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        raise SettingsError("There is no NVIDIA GPU here: nvidia-smi does not answer.") from None
    if done.returncode or not done.stdout.strip():
        raise SettingsError(f"PRESSWORK_DEVICE is 'cuda:{number}', but nvidia-smi knows no such GPU.")
    return done.stdout.strip().splitlines()[0].replace("/", "-")


def amd_kind(number: int, _: int = 0) -> str:
    """The GPU's architecture and number of SIMD units, as the kernel's driver says. Raises SettingsError, in one
    sentence, if there is none of that number."""
    found = []
    for file in sorted(KFD_NODES.glob("*/properties"), key=lambda file: int(file.parent.name)):
        fields = dict(re.findall(r"^(\w+) (\d+)$", file.read_text(), re.MULTILINE))
        if int(fields.get("simd_count", 0)):
            found.append(f"AMD gfx{fields.get('gfx_target_version', '')} {fields['simd_count']} SIMD")
    if number >= len(found):
        raise SettingsError(f"PRESSWORK_DEVICE is 'rocm:{number}', but the AMD driver knows {len(found)} GPUs.")
    return found[number]


def _cuda(number: int, _: int) -> Options:
    # EXHAUSTIVE would time algorithms. TF32 rounds the factors of products to 10 bits.
    return {"device_id": str(number), "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


def _openvino(_: int, threads: int) -> Options:
    return {"device_type": "CPU", "precision": "FP32", "num_of_threads": str(threads), "num_streams": "1"}


def _tensorrt(number: int, _: int) -> Options:
    return {"device_id": str(number), "trt_fp16_enable": "0", "trt_int8_enable": "0"}


def _migraphx(number: int, _: int) -> Options:
    return {"device_id": str(number), "migraphx_fp16_enable": "0", "migraphx_exhaustive_tune": "0"}


PROVIDERS = {
    "cuda": Provider("CUDAExecutionProvider", "pip install onnxruntime-gpu", "cuda", _cuda, nvidia_kind),
    "tensorrt": Provider(
        "TensorrtExecutionProvider", "pip install onnxruntime-gpu, with TensorRT's libraries", "cuda", _tensorrt,
        nvidia_kind, engine="context", also="cuda",
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider", "pip install onnxruntime-openvino", "cpu", _openvino,
        lambda _, threads: f"{cpu_kind()} x{threads}",
    ),
    "migraphx": Provider(
        "MIGraphXExecutionProvider", "AMD's onnxruntime-migraphx", "rocm", _migraphx, amd_kind, engine="beside"
    ),
}  # fmt: skip
assert (*PROVIDERS, "qaic") == NAMES


@dataclass(frozen=True, slots=True)
class Chosen:
    """A provider on one device. `kind` are the properties that decide bytes."""

    word: str
    provider: Provider
    number: int
    device: str
    kind: str
    threads: int

    @property
    def options(self) -> list[tuple[str, Options]]:
        """Those of the provider and of the one that takes what it cannot do."""
        words = (self.word, self.provider.also) if self.provider.also else (self.word,)
        found = [PROVIDERS[word] for word in words]
        return [(one.name, one.options(self.number, self.threads)) for one in found]


def choose(word: str, device: str, threads: int) -> Chosen:
    """Raises SettingsError, in one sentence, if this build of ONNX Runtime lacks the provider or this machine the
    device."""
    there = available()
    if word == "qaic":
        raise SettingsError(
            "PRESSWORK_RUNTIME is onnxruntime:qaic, which comes only in Qualcomm's own build of ONNX Runtime, whose "
            f"wheel is for Python 3.10, while this is Python {sys.version_info.major}.{sys.version_info.minor}; "
            "PRESSWORK_PIPELINE=ai100 runs on such cards."
        )
    provider = PROVIDERS[word]
    if provider.name not in there.values():
        raise SettingsError(
            f"PRESSWORK_RUNTIME is onnxruntime:{word}, but this ONNX Runtime ({' '.join(distribution())}) has only "
            f"{' and '.join(there)}; {provider.brings} brings {word}."
        )
    found = re.fullmatch(rf"{provider.device}(?::([0-9]{{1,3}}))?", device)
    if not found:
        several = "" if provider.device == "cpu" else f" or {provider.device}:N"
        raise SettingsError(
            f"PRESSWORK_DEVICE is {device!r}; with onnxruntime:{word} it can be {provider.device}{several}."
        )
    number = int(found[1] or 0)
    kind = provider.kind(number, threads)
    named = "cpu" if provider.device == "cpu" else f"{provider.device}:{number} {kind}"
    return Chosen(word, provider, number, named, kind, threads)


def available() -> dict[str, str]:
    """The providers of this build: the word for each, such as `cuda`, and ONNX Runtime's name."""
    return {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime_graphs.available()}


def distribution() -> tuple[str, str]:
    """The Python package that `onnxruntime` is imported from, and its version. Several may lie over one another."""
    running = onnxruntime_graphs.version()
    named = metadata.packages_distributions().get("onnxruntime", ())
    return max((name for name in named if metadata.version(name) == running), key=len, default="onnxruntime"), running
