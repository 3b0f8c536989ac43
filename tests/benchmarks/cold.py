"""cold: seconds from the start of a process to its first image on a CPU, with cached artefacts and without."""

import os
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.report import report

FIRST_IMAGE = """
from services.core.settings import Settings
from worker.pipeline import canary
from worker.pipelines.registry import open_pipeline

pipeline = open_pipeline(Settings.read())
assert pipeline.render(canary(pipeline.card, 8), lambda step: None)
"""


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="presswork-bench-") as artefacts:
        first = _seconds(artefacts)
        second = min(_seconds(artefacts) for _ in range(3))
    report("cold", second, first, "s to the first image", "the very first start", model="presswork-mini", batch=8)


def _seconds(artefacts: str) -> float:
    environ = os.environ | {
        "DATABASE_URL": "postgresql://unused",
        "REDIS_URL": "redis://unused",
        "PRESSWORK_PIPELINE": "onnx",
        "PRESSWORK_MODEL_DIR": "presswork-mini",
        "PRESSWORK_ARTEFACTS": artefacts,
    }
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", FIRST_IMAGE], env=environ, check=True)
    return time.monotonic() - began
