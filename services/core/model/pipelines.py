"""The registry of pipelines: every PRESSWORK_PIPELINE there is, and what it takes. Only names; nothing is imported.

A new backend is one line here and one module with `open_pipeline(settings)` under `worker/pipelines/`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PipelineEntry:
    """`module` is imported only when the pipeline is chosen. `extras` are those it needs beside `worker`. `model` is
    the one model that it always serves; None: the model is in PRESSWORK_MODEL_DIR."""

    module: str
    extras: tuple[str, ...] = ()
    model: str | None = None


PIPELINES = {
    "onnx": PipelineEntry("worker.pipelines.onnx", ("onnx",)),
    "torch": PipelineEntry("worker.pipelines.torch_compiled", ("torch",)),
    "simulated": PipelineEntry("worker.pipelines.simulated", model="simulated"),
}
