"""A whole worker on a GPU, with its Postgres, Redis and S3 server: `on_gpu.sh`'s part "worker".

A cold worker renders a job; a second one loses its rendering process to kill -9; a third one runs the model's safety
checker beside its batches. Every stored picture is read back and compared with its recorded sha256.
"""

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text

from services.core.jobs import queries
from services.core.storage.s3 import S3Store
from tests import factories
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.processes import Process
from tests.waiting import until
from worker.model import directory

START_SECONDS = 300
_CLAIMS = text("""
SELECT coalesce(sum(images), 0)::int AS images, coalesce(sum(render_seconds), 0)::float AS rendering,
       coalesce(extract(epoch FROM max(ended_at) - min(created_at)), 0)::float AS wall
FROM claims WHERE created_at >= :since
""")
_NOW = text("SELECT clock_timestamp()")
_STORED = text("SELECT object_key, sha256 FROM results WHERE job_id = :job")


def measured(model: Path, checked: Path, device: str, images: int, out: Path, say: Callable[[str], None]) -> Any:
    """The figures of each of the three workers, in the order above. `checked` is the model with a safety checker."""
    name = directory.with_sizes(model, directory.read_index(model), ()).name
    common = {"PRESSWORK_PIPELINE": "torch", "PRESSWORK_DEVICE": device, "PRESSWORK_MODEL": name,
              "PRESSWORK_ARTEFACTS": str(model.with_name("worker-artefacts"))}  # fmt: skip
    found: list[dict[str, Any]] = []
    with benchmark_stack(**common) as stack:
        for case, folder, extra in (
            ("cold", model, {}),
            ("killed", model, {}),
            ("checked", checked, {"PRESSWORK_SAFETY_CHECKER": "1"}),
        ):
            with _worker(stack, {"PRESSWORK_MODEL_DIR": str(folder), **extra}, out / f"{case}.log") as (worker, ready):
                figures = _job(stack, images, worker if case == "killed" else None)
            found.append({"case": case, "ready_seconds": round(ready, 1), **figures})
            say(str(found[-1]))
            (out / "worker.part").write_text(json.dumps(found, indent=1))
    return found


@contextmanager
def _worker(stack: BenchmarkStack, extra: dict[str, str], log: Path) -> Iterator[tuple[Process, float]]:
    began = time.monotonic()
    worker = Process("worker.app", {**os.environ, **stack.environ, **extra}, log)
    try:
        until(lambda: _ready(stack, worker), seconds=START_SECONDS, every=0.2)
        yield worker, time.monotonic() - began
    finally:
        worker.stop(60)


def _ready(stack: BenchmarkStack, worker: Process) -> bool:
    assert worker.popen.poll() is None, worker.text()[-2000:]
    with stack.database.begin_system() as connection:
        return any(row.state == "ready" and row.silent < 10 for row in queries.fleet(connection))


def _job(stack: BenchmarkStack, images: int, to_kill: Process | None) -> dict[str, Any]:
    rows = [{"prompt": f"a mug, number {index}", "output_format": "jpeg", "seed": index} for index in range(images)]
    with stack.database.begin_system() as connection:
        since = connection.execute(_NOW).scalar_one()
    with _utilization() as busy:
        job = factories.submit(stack.database, stack.settings, rows)
        if to_kill is not None:
            until(lambda: _done(stack, job) > images // 4, seconds=300)
            for child in to_kill.children():
                os.kill(child, signal.SIGKILL)
        until(lambda: _done(stack, job) == images, seconds=400, every=0.1)
    with stack.database.begin_system() as connection:
        row = connection.execute(_CLAIMS, {"since": since}).one()
        stored = connection.execute(_STORED, {"job": job}).all()
    store = S3Store(stack.settings)
    wrong = [one.object_key for one in stored if hashlib.sha256(store.read(one.object_key)).digest() != one.sha256]
    return {
        "images": images, "stored": len(stored), "wrong": len(wrong), "claimed": row.images,
        "images_a_second": round(images / row.wall, 2), "of_the_time_rendering": round(row.rendering / row.wall, 4),
        "utilization": round(statistics.mean(busy), 1) if busy else None,
    }  # fmt: skip


def _done(stack: BenchmarkStack, job: int) -> int:
    with stack.database.begin(1) as connection:
        found = queries.job(connection, 1, job)
    return found.counts["done"] if found is not None else 0


@contextmanager
def _utilization() -> Iterator[list[float]]:
    """Per cent, as nvidia-smi samples it twice a second; empty without it."""
    seen: list[float] = []
    if shutil.which("nvidia-smi") is None:
        yield seen
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        lines = watch.stdout or []
        threading.Thread(target=lambda: seen.extend(float(line) for line in lines), daemon=True).start()
        try:
            yield seen
        finally:
            watch.terminate()


def with_checker(model: Path, folder: Path, *, small: bool) -> None:
    """A copy of the model with a safety checker of the published size (`small`: a tiny one), random weights, that
    flags nothing."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 14}  # fmt: skip
    if small:
        vision |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shutil.copytree(model, folder, copy_function=os.link)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=768))
    with torch.no_grad():
        for name in ("concept_embeds_weights", "special_care_embeds_weights"):
            getattr(checker, name).fill_(2.0)  # no cosine is above it
    checker.save_pretrained(folder / "safety_checker")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps({"size": 224, "crop_size": 224}))
