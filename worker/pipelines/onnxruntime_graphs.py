"""ONNX graphs on ONNX Runtime's CPU provider, in float32."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

# Must be set before the import, or ONNX Runtime sends telemetry and writes to the home directory.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

ERRORS_ONLY = 3


class Graph:
    """A worker.pipelines.onnx.Network."""

    def __init__(self, file: Path, precision: str, threads: int) -> None:  # noqa: ARG002  it is always float32
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other workers need the cores
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs: dict[str, NDArray[Any]] = {}

    def set(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._inputs |= inputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = self._session.run(None, self._inputs | dict(inputs))
        return found
