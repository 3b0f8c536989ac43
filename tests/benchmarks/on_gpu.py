"""One part of what `on_gpu.sh` does on a machine with a GPU: that script says which there are.

A part's contenders load and compile at the same time, each in its own process; once all are warm they are timed in
turns.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worker.bench import measure
from worker.bench.contender import STOCK, Contender, Setup
from worker.model import checkpoint
from worker.model.make import make
from worker.pipelines.torch_compiled import library_versions

ROUNDS = 3
ON_CPU = os.environ.get("DEVICE", "cuda") == "cpu"  # to try this file itself
FULL, SD15 = ("tiny", "tiny-sd") if ON_CPU else ("full", "sd15")
BATCH = 2 if ON_CPU else 16
SWEEP = (1, 2) if ON_CPU else (1, 2, 4, 8, 16, 32)
TUNING = ("no-norm-kernels", "any-attention", "cudnn-attention", "reduced-reductions", "no-graphs", "cudnn-benchmark")
SCRATCH = Path(os.environ.get("SCRATCH", "/tmp/presswork-gpu"))
CONTRACT = ["-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib",
            "-o", "timeout=400", "-v", "--tb=short", "-k", "cuda", "tests/contract/test_pipelines.py",
            "tests/unit/test_group_norm.py"]  # fmt: skip
BEGAN = time.monotonic()


def main() -> None:
    part, out = sys.argv[1], Path(sys.argv[2])
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    SCRATCH.mkdir(parents=True, exist_ok=True)
    write(out / f"{part}.json", {"device": device(), "found": PARTS[part](out)})


def contract(out: Path) -> dict[str, Any]:
    with (out / "contract.txt").open("w") as log, tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        command = [sys.executable, *CONTRACT, f"--basetemp={folder}/contract"]
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    found = {"status": status, "said": (out / "contract.txt").read_text().strip().splitlines()[-1]}
    say(str(found))
    return found


def correctness(out: Path) -> list[dict[str, Any]]:
    size = min(BATCH, 4)
    setups = [exact(FULL, size), stock(FULL, size), engine(FULL, size), engine(FULL, size, compiles=False)]
    with running(setups) as contenders:
        return compare(contenders, out / "correctness.json")


def sweep(out: Path) -> list[dict[str, Any]]:
    with running([exact(FULL, BATCH), stock(FULL, BATCH), *(engine(FULL, size) for size in SWEEP)]) as contenders:
        return timed(contenders, out / "sweep.json")


def tuning(out: Path) -> list[dict[str, Any]]:
    """Each choice of the engine at the usual batch the other way round, and CUDA graphs also at the smallest one."""
    tried = [] if ON_CPU else [engine(FULL, BATCH, name) for name in TUNING]
    without = [] if ON_CPU else [engine(FULL, 1, "no-graphs")]
    with running([engine(FULL, BATCH), *tried, engine(FULL, 1), *without]) as contenders:
        return timed(contenders, out / "tuning.json")


def kernels(out: Path) -> dict[str, Any]:
    found = {}
    with running([stock(FULL, BATCH), engine(FULL, BATCH), engine(FULL, 1)]) as contenders:
        for contender in contenders:
            name = f"{contender.setup.name} x{contender.setup.batch}"
            found[name] = {} if ON_CPU else contender.ask("kernels")
            say(f"{name}: {found[name].get('busy_ms')} ms busy, {found[name].get('kinds_ms')}")
            write(out / "kernels.part", found)
    return found


def sd15(out: Path) -> dict[str, Any]:
    with running([exact(SD15, BATCH), stock(SD15, BATCH), engine(SD15, BATCH)]) as contenders:
        return {"figures": timed(contenders, out / "sd15.json"), "pictures": compare(contenders, out / "sd15.json")}


def cold(out: Path) -> list[dict[str, Any]]:
    """Two starts one after the other: nothing compiled before the first."""
    shutil.rmtree(SCRATCH / "cold", ignore_errors=True)
    setup = engine(FULL, BATCH, cache="cold")
    found = []
    for start in ("first", "second"):
        with Contender(setup) as contender:
            found.append({"start": start, **contender.answer()})
        say(str(found[-1]))
        write(out / "cold.part", found)
    return found


def worker(out: Path) -> Any:
    """A whole worker with its servers, which need the extra `local`."""
    from tests.benchmarks import worker_on_gpu

    model, checked = SCRATCH / FULL, SCRATCH / f"{FULL}-checked"
    if not model.exists():
        make(model, FULL)
    if not checked.exists():
        worker_on_gpu.with_checker(model, checked, small=ON_CPU)
    images = int(os.environ.get("IMAGES", "24" if ON_CPU else "1600"))
    return worker_on_gpu.measured(model, checked, "cpu" if ON_CPU else "cuda", images, out, say)


def stock(model: str, batch: int) -> Setup:
    """Stock diffusers, compiled, channels-last."""
    return Setup(batch=batch, runtime=STOCK, **common(model))


def exact(model: str, batch: int) -> Setup:
    """Stock diffusers in float32: what is right, and the baseline of ratios."""
    return Setup(batch=batch, runtime=STOCK, **common(model) | {"precision": "fp32", "compiles": False})


def engine(model: str, batch: int, *tuning: str, compiles: bool = True, cache: str = "cache") -> Setup:
    changed = {"compiles": compiles and not ON_CPU, "cache": str(SCRATCH / cache)}
    return Setup(batch=batch, tuning=tuning, **common(model) | changed)


def common(model: str) -> dict[str, Any]:
    return {
        "model": str(SCRATCH / model), "device": "cpu" if ON_CPU else "cuda", "precision": "fp32" if ON_CPU else "fp16",
        "cache": str(SCRATCH / "cache"), "compiles": not ON_CPU,
    }  # fmt: skip


@contextlib.contextmanager
def running(setups: Sequence[Setup]) -> Iterator[list[Contender]]:
    """The contenders, warm. The models that they need are made first, unless an earlier part made them."""
    for model in {setup.model for setup in setups}:
        if not Path(model).exists():
            make(Path(model), Path(model).name)
            say(f"{Path(model).name} is made")
    within = float(os.environ.get("READY", "240"))
    with contextlib.ExitStack() as stack:
        found = measure.start(setups, say, at_once=len(setups), within=within)
        yield [stack.enter_context(contender) for contender in found]


def timed(contenders: list[Contender], file: Path) -> list[dict[str, Any]]:
    useful: dict[tuple[str, int], float] = {}
    rows: list[dict[str, Any]] = []
    measure.interleave(contenders, ROUNDS)
    rates = measure.matrix_rates(contenders)
    say(f"matrix products: {', '.join(f'{name} {rate / 1e12:.0f} TFLOP/s' for name, rate in rates.items())}")
    for contender in contenders:
        setup = contender.setup
        if (setup.model, setup.batch) not in useful:
            loaded = checkpoint.load(Path(setup.model))
            costs = measure.counted(loaded, measure.work_of(loaded, setup.batch).shape, setup.batch)
            useful[setup.model, setup.batch] = measure.useful(costs)
        found = measure.figures(contender, contenders[0], useful[setup.model, setup.batch], rates)
        rows.append(
            {"model": Path(setup.model).name, "batch": setup.batch, **found, **contender.ask("memory"),
             "seconds": [round(one, 4) for one in contender.seconds]}
        )  # fmt: skip
        write(file.with_suffix(".part"), rows)
        say(
            f"{rows[-1]['model']:5} x{setup.batch:<3}{found['name']:36}{found['images_a_second']:8.2f}/s"
            f"{found['ms_an_image']:8.2f} ms {found['of_arithmetic_limit']:6.3f} {rows[-1]['peak_gib']} GiB"
        )
    return rows


def compare(contenders: list[Contender], file: Path) -> list[dict[str, Any]]:
    """Each contender's pictures beside those of the first."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        right: Any = None
        for number, contender in enumerate(contenders):
            setup, pictures = contender.setup, f"{folder}/{number}.npy"
            digest = contender.ask("pixels", pictures)["sha256"]
            pixels = np.load(pictures).astype(np.int16)
            right = pixels if right is None else right
            levels = np.abs(pixels - right)
            found.append(
                {"name": setup.name, "batch": setup.batch, "sha256": digest[:12], "largest": int(levels.max()),
                 "mean_levels": round(float(levels.mean()), 4), "std": round(float(pixels.std()), 1)}
            )  # fmt: skip
            write(file.with_suffix(".pictures"), found)
            say(str(found[-1]))
    return found


def device() -> str:
    if ON_CPU:
        return f"cpu{library_versions(on_cuda=False)}"
    return torch.cuda.get_device_name() + library_versions(on_cuda=True)


def write(file: Path, value: Any) -> None:
    """Whole or not at all: the file's being there says that the part is done."""
    draft = file.with_name(f".{file.name}")
    draft.write_text(json.dumps(value, indent=1))
    draft.rename(file)


def say(line: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} {line}", flush=True)


PARTS = {"contract": contract, "correctness": correctness, "sweep": sweep, "tuning": tuning, "kernels": kernels,
         "sd15": sd15, "cold": cold, "worker": worker}  # fmt: skip

if __name__ == "__main__":
    main()
