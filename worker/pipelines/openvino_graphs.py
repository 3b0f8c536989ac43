"""ONNX graphs on OpenVINO's CPU device, in float32 as they are or with bfloat16 inside."""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# With this package, importing OpenVINO sends telemetry and writes to the home directory. OpenVINO works without it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402

HINTS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}


class Graph:
    """A worker.pipelines.onnx.Network."""

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        """Compiles in about a second. The result is as large as the weights, so it is not cached on disk."""
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # in containers, several processes would be pinned to the same cores
            "ENABLE_HYPER_THREADING": True,  # without it, fewer threads than asked for where CPUs are hyper-threads
        }
        compiled = _core().compile_model(str(file), "CPU", config)
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))
        self._inputs: dict[str, NDArray[Any]] = {}  # the request reads these arrays in place

    def set(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        for name, array in inputs.items():
            self._inputs[name] = np.ascontiguousarray(array)
            self._request.set_tensor(name, openvino.Tensor(self._inputs[name], shared_memory=True))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.set(inputs)
        self._request.infer()
        # Copies, because the next run overwrites the outputs.
        return [np.array(self._request.get_output_tensor(n).data) for n in self._outputs]


@cache
def _core() -> Any:
    return openvino.Core()
