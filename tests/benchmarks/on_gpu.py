"""The engine on a machine with one NVIDIA GPU: `on_gpu.sh` says what it needs and calls it.

All contenders load and compile at the same time, each in its own process, beside the contract suite; once all are warm
they are timed in turns. Each part's figures are written as soon as they are there.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worker.bench import measure
from worker.bench.contender import STOCK, Contender, Setup
from worker.model import checkpoint
from worker.model.make import make

ROUNDS = 3
CONTRACT = ["-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib",
            "-o", "timeout=400", "-q", "-k", "cuda", "tests/contract/test_pipelines.py",
            "tests/unit/test_group_norm.py"]  # fmt: skip
BEGAN = time.monotonic()


def main() -> None:
    out = Path(sys.argv[1])
    tiny = os.environ.get("DEVICE", "cuda") == "cpu"  # to try the script itself
    models, batch = (("tiny", "tiny-sd"), 2) if tiny else (("full", "sd15"), 16)
    wait = float(os.environ.get("READY", "240"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    with tempfile.TemporaryDirectory(prefix="presswork-gpu-") as scratch, contextlib.ExitStack() as running:
        with ThreadPoolExecutor() as pool:
            suite = pool.submit(_contract, out, scratch) if "contract" in _parts() else None
            list(pool.map(lambda name: make(Path(scratch) / name, name), models))
            _say("the models are made")
            setups = _setups([Path(scratch) / name for name in models], batch, scratch, on_cpu=tiny)
            contenders = measure.start(setups, _say, at_once=len(setups), within=wait)
            for contender in contenders:
                running.enter_context(contender)
            if suite:
                _say(f"the contract suite: {suite.result()}")
        _time(contenders, out)
        _look(contenders, out)
        plain = next(contender.setup for contender in contenders if contender.setup.runtime != STOCK)
        with Contender(plain) as again:  # what it compiles is in the cache
            _say(f"a second process of {plain.name} x{plain.batch}: {again.answer()}")


def _parts() -> list[str]:
    return os.environ.get("PARTS", "contract,tuning,sizes,sd15").split(",")


def _setups(models: list[Path], batch: int, scratch: str, *, on_cpu: bool) -> list[Setup]:
    precision = "fp32" if on_cpu else "fp16"
    common: dict[str, Any] = {
        "device": "cpu" if on_cpu else "cuda", "precision": precision, "cache": f"{scratch}/cache", "compiles": True,
    }  # fmt: skip
    full: dict[str, Any] = {**common, "model": str(models[0])}
    given = os.environ.get("TUNING", "+no-norm-kernels+graphs+cudnn-benchmark+cudnn-attention")
    tunings = [tuple(filter(None, one.split(","))) for one in given.split("+")]
    found = [Setup(batch=batch, runtime=STOCK, **full | {"compiles": False, "precision": "fp32"})]
    if "stock" in _parts() or "tuning" in _parts():
        found += [Setup(batch=batch, runtime=STOCK, **full)]
    if "tuning" in _parts():
        found += [Setup(batch=batch, tuning=() if on_cpu else tuning, **full) for tuning in tunings]
    if "sizes" in _parts():
        found += [Setup(batch=size, **full) for size in (1, batch // 2, 2 * batch)]
    if "sd15" in _parts():
        found += [Setup(batch=batch, runtime=name, **common, model=str(models[1])) for name in (STOCK, "torch")]
    return found


def _contract(out: Path, scratch: str) -> str:
    with (out / "contract.txt").open("w") as log:
        command = [sys.executable, *CONTRACT, f"--basetemp={scratch}/contract"]
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=420).returncode
    return f"{status}, {(out / 'contract.txt').read_text().strip().splitlines()[-1]}"


def _time(contenders: list[Contender], out: Path) -> None:
    useful: dict[tuple[str, int], float] = {}
    rows: list[dict[str, Any]] = []
    _say("timing")
    measure.interleave(contenders, ROUNDS)
    rates = measure.matrix_rates(contenders)
    _say(f"matrix products: {', '.join(f'{name} {rate / 1e12:.0f} TFLOP/s' for name, rate in rates.items())}")
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
        (out / "figures.json").write_text(json.dumps(rows, indent=1))
        _say(
            f"{rows[-1]['model']:5} x{setup.batch:<3}{found['name']:36}{found['images_a_second']:8.2f}/s"
            f"{found['ms_an_image']:8.2f} ms {found['of_arithmetic_limit']:6.3f} {rows[-1]['peak_gib']} GiB"
            f" {found['ms_a_batch'] or ''}"
        )


def _look(contenders: list[Contender], out: Path) -> None:
    """The pictures beside those of stock diffusers in float32, and where the time goes."""
    with tempfile.TemporaryDirectory() as folder:
        exact: dict[str, Any] = {}
        differences = []
        for number, contender in enumerate(contenders):
            setup, file = contender.setup, f"{folder}/{number}.npy"
            digest = contender.ask("pixels", file)["sha256"]
            pixels = np.load(file).astype(np.int16)
            first = exact.setdefault(setup.model, pixels)
            shared = min(len(pixels), len(first))
            levels = np.abs(pixels[:shared] - first[:shared])
            differences.append(
                {"model": Path(setup.model).name, "batch": setup.batch, "name": setup.name, "sha256": digest[:12],
                 "mean_levels": round(float(levels.mean()), 4), "largest": int(levels.max()),
                 "std": round(float(pixels.std()), 1)}
            )  # fmt: skip
            _say(str(differences[-1]))
            (out / "pictures.json").write_text(json.dumps(differences, indent=1))
    if not torch.cuda.is_available():
        return
    kernels = {}
    for contender in contenders:
        setup = contender.setup
        if setup.precision == "fp16" and (setup.runtime != STOCK or setup.compiles):
            kernels[f"{Path(setup.model).name} x{setup.batch} {setup.name}"] = found = contender.ask("kernels")
            _say(f"{setup.batch} {setup.name}: {found['busy_ms']} of {found['span_ms']} ms, {found['kinds_ms']}")
            (out / "kernels.json").write_text(json.dumps(kernels, indent=1))


def _say(line: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} {line}", flush=True)


if __name__ == "__main__":
    main()
