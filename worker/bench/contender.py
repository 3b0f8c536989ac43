"""One way to render the benchmark's batch, in a process of its own, so that no contender's settings reach another.

`python -m worker.bench.contender SETUP` loads, compiles and warms up, then answers one JSON line for each line on its
standard input: a verb, and what the verb takes.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from services.core.processes import python
from worker.pipelines.compiler import keep_caches

STOCK = "stock"


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """What renders the batch. `runtime` is torch, openvino, onnxruntime, or "stock" for diffusers itself.

    `tuning` names changes to the engine that are being tried: see `_tune`.
    """

    model: str
    batch: int
    runtime: str = "torch"
    precision: str = "fp32"
    device: str = "cpu"
    compiles: bool = True
    cache: str = ""
    tuning: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        if self.runtime == STOCK:
            return f"stock diffusers {'compiled' if self.compiles else 'eager'} {self.precision}"
        return " ".join([self.runtime, self.precision, *(() if self.compiles else ("eager",)), *self.tuning])


class Contender:
    """A contender's process, as the benchmark sees it."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.seconds = setup, list[float]()
        self._process = subprocess.Popen(
            python("worker.bench.contender", json.dumps(dataclasses.asdict(setup))),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._process.communicate()

    def stop(self) -> None:
        self._process.terminate()

    @property
    def best(self) -> float:
        return min(self.seconds)

    def answer(self) -> dict[str, Any]:
        """The next answer; the first says that it is ready. Raises RuntimeError if the process failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.setup.name} ended with {self._process.wait()} before it answered.")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, verb: str, argument: str = "") -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {argument}".strip() + "\n")
        self._process.stdin.flush()
        return self.answer()

    def time_a_batch(self) -> None:
        self.seconds.append(self.ask("render")["seconds"])


class _Renderer:
    """The process's inside: the model, loaded and warm."""

    def __init__(self, setup: Setup) -> None:
        import torch

        from worker.bench import measure
        from worker.model import checkpoint
        from worker.pipelines.torch_compiled import DTYPES

        self._torch, self._device, self._dtype = torch, torch.device(setup.device), DTYPES[setup.precision]
        loaded = checkpoint.load(Path(setup.model))
        self._work = measure.work_of(loaded, setup.batch)
        self._pipeline: Any = None
        if setup.runtime == STOCK:
            from worker.bench.stock import Stock

            stock = Stock(loaded, self._device, self._dtype, compiles=setup.compiles)
            self._render = lambda: stock.render(self._work)
        else:
            self._pipeline = measure.open_engine(loaded, setup)
            self._render = self._pictures
        began = time.perf_counter()
        self.render()
        self.warm_up_seconds = round(time.perf_counter() - began, 1)
        self.render()

    def _pictures(self) -> NDArray[np.uint8]:
        pictures = self._pipeline.render(self._work.batch, lambda _step: None)
        return np.stack([getattr(picture, "pixels", np.zeros((8, 8, 3), np.uint8)) for picture in pictures])

    def render(self, _: str = "") -> dict[str, Any]:
        began = time.perf_counter()
        self._render()
        return {"seconds": time.perf_counter() - began}

    def networks(self, _: str = "") -> dict[str, Any]:
        from worker.bench import measure

        if self._pipeline is None:
            return {}
        return {"ms": measure.per_network(self._pipeline, self._work, self._device)}

    def rate(self, _: str = "") -> dict[str, Any]:
        from worker.bench import measure

        return {"flops": measure.matrix_rate(self._device, self._dtype)}

    def pixels(self, file: str) -> dict[str, Any]:
        """Saves the pictures and returns their digest."""
        found = self._render()
        np.save(file, found)
        return {"sha256": hashlib.sha256(found.tobytes()).hexdigest()}

    def kernels(self, _: str = "") -> dict[str, Any]:
        from worker.bench.kernels import table

        return table(self._render)

    def memory(self, _: str = "") -> dict[str, Any]:
        """The device's memory at its peak, GiB."""
        cuda = self._torch.cuda
        return {"peak_gib": round(cuda.max_memory_reserved() / 2**30, 2) if self._device.type == "cuda" else None}


def _tune(tuning: tuple[str, ...]) -> None:
    """Changes the engine as is being tried: `no-norm-kernels` leaves group norms to Inductor, `graphs`
    records CUDA graphs at every batch size and `no-graphs` at none, attention is left to torch by `any-attention` and
    is cuDNN's by `cudnn-attention`, `reduced-reductions` lets matrix products sum in half precision, and
    `cudnn-benchmark` lets cuDNN time its kernels."""
    if not tuning:
        return
    import torch
    from torch.nn.attention import SDPBackend

    from worker.pipelines import torch_compiled

    flags = torch.backends.cudnn.flags
    for name in tuning:
        if name == "no-norm-kernels":
            torch_compiled.NORM_KERNELS = False
        elif name == "graphs":
            torch_compiled.GRAPHED_UP_TO = 1 << 20
        elif name == "no-graphs":
            torch_compiled.GRAPHED_UP_TO = 0
        elif name == "any-attention":
            torch_compiled.ATTENTION = ()
        elif name == "cudnn-attention":
            torch_compiled.ATTENTION = (SDPBackend.CUDNN_ATTENTION, *torch_compiled.ATTENTION)
        elif name == "reduced-reductions":
            torch_compiled.REDUCED_PRECISION_REDUCTIONS = True
        elif name == "cudnn-benchmark":
            torch.backends.cudnn.flags = lambda **given: flags(**given | {"benchmark": True, "deterministic": False})
        else:
            raise SystemExit(f"Nothing is known of the tuning {name!r}.")


def main() -> None:
    given = json.loads(sys.argv[1])
    setup = Setup(**given | {"tuning": tuple(given["tuning"])})
    answers: IO[str] = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print too

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    began = time.monotonic()
    if setup.cache:
        keep_caches(Path(setup.cache))
    _tune(setup.tuning)
    renderer = _Renderer(setup)
    answer({"ready_seconds": round(time.monotonic() - began, 1), "first_batch_seconds": renderer.warm_up_seconds})
    for line in sys.stdin:
        verb, _, argument = line.strip().partition(" ")
        answer(getattr(renderer, verb)(argument))


if __name__ == "__main__":
    main()
