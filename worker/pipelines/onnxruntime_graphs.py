"""ONNX graphs on an execution provider of ONNX Runtime, in float32."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from worker.pipeline import CompileFailed

# Must be set before the import, or ONNX Runtime sends telemetry and writes to the home directory.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

ERRORS_ONLY = 3
CPU = "CPUExecutionProvider"
Providers = Sequence[tuple[str, dict[str, str]]]


class Graph:
    """A worker.pipelines.onnx.Network."""

    def __init__(
        self, file: Path, precision: str, threads: int, providers: Providers = (),  # noqa: ARG002  it is always float32
        entries: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`providers` with their options, the best one first; what they cannot do falls to the CPU's. `entries` are of
        the session's configuration. Raises CompileFailed if the first provider cannot start, or not with this graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other workers need the cores
        for name, value in (entries or {}).items():
            options.add_session_config_entry(name, value)
        if not providers:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=[CPU])
        else:
            options.use_deterministic_compute = True
            self._session = _accelerated(file, options, providers)
        self._inputs: dict[str, NDArray[Any]] = {}

    def set(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._inputs |= inputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = self._session.run(None, self._inputs | dict(inputs))
        return found


def available() -> list[str]:
    """The providers of this build, by ONNX Runtime's names."""
    return list(onnxruntime.get_available_providers())


def version() -> str:
    return str(onnxruntime.__version__)


def _accelerated(file: Path, options: Any, providers: Providers) -> Any:
    wanted = providers[0][0]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[*providers, CPU], enable_fallback=0)
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise CompileFailed(f"ONNX Runtime's {wanted} cannot run {file.name}: {reason}.") from error
    if session.get_providers()[0] != wanted:  # even so ONNX Runtime goes on with the CPU's if a library is missing
        raise CompileFailed(f"ONNX Runtime's {wanted} does not start here: its driver or libraries are missing.")
    return session
