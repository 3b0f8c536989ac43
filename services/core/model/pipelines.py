"""The registry of pipelines: every value of PRESSWORK_PIPELINE. It holds names only and imports no pipeline.

A new backend is one line here and one module with `open_pipeline(settings)` under `worker/pipelines/`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PipelineEntry:
    """`module` is imported only when the pipeline is chosen, and needs `extras` in addition to `worker`. `model` is the
    only model that it serves; None: it serves the one in PRESSWORK_MODEL_DIR."""

    module: str
    extras: tuple[str, ...] = ()
    model: str | None = None


PIPELINES = {
    "onnx": PipelineEntry("worker.pipelines.onnx", ("onnx",)),
    "torch": PipelineEntry("worker.pipelines.torch_compiled", ("torch",)),
    "ai100": PipelineEntry("worker.pipelines.cloud_ai100", ("onnx",)),
    "simulated": PipelineEntry("worker.pipelines.simulated", model="simulated"),
}
