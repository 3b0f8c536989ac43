"""Measures the engine and stock diffusers on the same weights, device and run."""

import contextlib
import copy
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.core.model.errors import PressworkError
from services.core.model.specs import Shape, Spec
from worker.bench.contender import STOCK, Contender, Setup
from worker.bench.stock import Work
from worker.model import checkpoint, noise, sampler
from worker.model.checkpoint import Checkpoint
from worker.model.stages import Decoder, Denoiser, TextEncoder
from worker.model.text import Prompts
from worker.model.unet import flops
from worker.pipelines.diffusion import DiffusionPipeline

PROMPTS = ("a red mug on a wooden table", "a blue chair, studio photo", "a small green lamp", "two yellow bottles")


def start(
    setups: Sequence[Setup], say: Callable[[str], None], *, at_once: int | None = None, within: float = 3600.0
) -> list[Contender]:
    """The contenders that are warm and idle after at most `within` seconds each; what failed is said. `at_once`
    (default: half of the processors) load and compile at the same time."""
    ready: list[Contender | None] = [None] * len(setups)

    def bring_up(number: int) -> None:
        contender = Contender(setups[number])
        late = threading.Timer(within, contender.stop)
        late.start()
        try:
            found = contender.answer()
        except RuntimeError as error:
            say(f"  {error}")
            return
        finally:
            late.cancel()
        say(f"  {setups[number].name}: first batch {found['first_batch_seconds']} s")
        ready[number] = contender

    with ThreadPoolExecutor(at_once or max(1, (os.cpu_count() or 1) // 2)) as pool:
        list(pool.map(bring_up, range(len(setups))))
    return [contender for contender in ready if contender is not None]


def interleave(contenders: Sequence[Contender], rounds: int) -> None:
    """Times them in turns, so that other load on the machine affects all alike."""
    for _ in range(rounds):
        for contender in contenders:
            contender.time_a_batch()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product of random numbers; zeros would run faster."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def counted(loaded: Checkpoint, shape: Shape, batch: int) -> dict[str, float]:
    """FLOPs of each network for one batch of that shape with the engine's savings, and the U-Net's without them."""
    unet, vae, text_encoder = (copy.deepcopy(network).to("meta") for network in
                               (loaded.unet, loaded.vae, loaded.text_encoder))  # fmt: skip
    length = Prompts.of(loaded.tokenizer, loaded.text_encoder.config.max_position_embeddings).length
    halves = 2 if shape.guided else 1
    with torch.device("meta"):
        latents = torch.empty(batch, unet.latent_channels, shape.height // 8, shape.width // 8)
        tokens = torch.empty(batch, length, dtype=torch.int64)
        time, states = unet.embed_time(torch.empty(1)), torch.empty(halves * batch, length, unet.text_width)
        keys = unet.project_text(states)
        twice = latents.repeat(halves, 1, 1, 1)
        return {
            "encode_text": float(flops(lambda: TextEncoder(text_encoder, unet)(tokens))),
            "denoise": float(flops(lambda: Denoiser(unet)(latents, time, keys))) * shape.steps,
            "denoise_unsaved": float(flops(lambda: unet(twice, torch.empty(halves * batch), states))) * shape.steps,
            "decode": float(flops(lambda: Decoder(vae)(latents))),
        }


def per_network(pipeline: DiffusionPipeline, work: Work, device: torch.device) -> dict[str, float]:
    """Milliseconds a batch of each network alone, the best of three."""
    compiled = pipeline._backend.compiled(work.shape, len(work.specs))
    tokens, _ = pipeline._prompts.tokens([spec.prompt for spec in work.specs])
    text = compiled.encode_text(tokens)
    both = compiled.concat_halves([array[:1] for array in text], text)
    steps = sampler.plan(pipeline._sampler_config, work.shape.steps)
    times = compiled.time_table([step.timestep for step in steps])
    latents = compiled.to_device(np.stack([noise.draw(spec.seed, pipeline._latent_size(spec)) for spec in work.specs]))

    def denoise() -> None:
        for row in times:
            compiled.denoise(latents, row, both)

    found = {}
    for name, run in (
        ("encode_text", lambda: compiled.encode_text(tokens)),
        ("denoise", denoise),
        ("decode", lambda: compiled.decode(latents)),
    ):
        best = float("inf")
        for _ in range(3):
            _wait(device)
            began = time.perf_counter()
            run()
            _wait(device)
            best = min(best, time.perf_counter() - began)
        found[name] = round(best * 1000, 2)
    return found


def measure(
    folder: Path, name: str, *, device: torch.device, batch: int, precisions: list[str], runtimes: list[str],
    cache: Path, rounds: int, compiles: bool, say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Renders the same batch with every contender and returns the figures."""
    common: dict[str, Any] = {"model": str(folder), "batch": batch, "device": str(device), "cache": str(cache)}
    setups = [Setup(runtime=STOCK, compiles=False, **common)]  # in float32, eagerly: the baseline of all ratios
    if device.type == "cuda":
        setups += [
            Setup(runtime=STOCK, precision="fp16", compiles=how, **common) for how in ((False, True)[: 1 + compiles])
        ]
    setups += [
        Setup(runtime=runtime, precision=precision, compiles=compiles, **common)
        for precision in precisions
        for runtime in runtimes
        if runtime != "onnxruntime" or precision == "fp32"
    ]
    loaded = checkpoint.load(folder)
    index, costs = loaded.index, counted(loaded, work_of(loaded, batch).shape, batch)
    del loaded
    say(
        f"{name}: {index.default_size[0]}x{index.default_size[1]}, {index.default_steps} steps, batch {batch}, {device}"
    )
    found: dict[str, Any] = {
        "model": name, "batch": batch, "device": device_name(device), "steps": index.default_steps,
        "size": list(index.default_size), "gflop_an_image": round(useful(costs) / batch / 1e9, 2),
        "unet_flops_saved": round(1 - costs["denoise"] / costs["denoise_unsaved"], 4),
        "torch": torch.__version__, "contenders": [],
    }  # fmt: skip
    with contextlib.ExitStack() as running:
        contenders = [running.enter_context(contender) for contender in start(setups, say)]
        if not contenders or contenders[0].setup != setups[0]:
            raise PressworkError("Stock diffusers in float32, to which the others are compared, did not start.")
        interleave(contenders, rounds)
        rates = matrix_rates(contenders)
        found["contenders"] = [figures(contender, contenders[0], useful(costs), rates) for contender in contenders]
    return found


def useful(costs: Mapping[str, float]) -> float:
    """FLOPs that a batch needs without any saving: what a fraction of the device's arithmetic is a fraction of."""
    return costs["encode_text"] + costs["denoise_unsaved"] + costs["decode"]


def matrix_rates(contenders: Sequence[Contender]) -> dict[str, float]:
    """FLOP/s of a large matrix product in each precision that is used: the best that any of them saw."""
    rates: dict[str, float] = defaultdict(float)
    for contender in contenders:
        precision = contender.setup.precision
        rates[precision] = max(rates[precision], contender.ask("rate")["flops"])
    return rates


def figures(
    contender: Contender, baseline: Contender, flop: float, rates: Mapping[str, float]
) -> dict[str, Any]:  # fmt: skip
    """What was measured of one contender; `flop` is what its batch takes without savings."""
    rate = rates[contender.setup.precision]
    return {
        "name": contender.setup.name,
        "images_a_second": round(contender.setup.batch / contender.best, 4),
        "ms_an_image": round(contender.best / contender.setup.batch * 1000, 2),
        "ratio": round(baseline.best / contender.best, 3),
        "ratio_median": round(statistics.median(baseline.seconds) / statistics.median(contender.seconds), 3),
        "matrix_tflops": round(rate / 1e12, 3),
        "of_arithmetic_limit": round(flop / contender.best / rate, 3),
        "ms_a_batch": contender.ask("networks").get("ms"),
    }


def work_of(loaded: Checkpoint, batch: int) -> Work:
    index = loaded.index
    width, height = index.default_size
    return Work(
        tuple(
            Spec(loaded.revision, PROMPTS[n % len(PROMPTS)], "", n, width, height, index.default_steps, 7.5)
            for n in range(batch)
        )
    )


def open_engine(loaded: Checkpoint, setup: Setup) -> DiffusionPipeline:
    """The engine as `setup` says. Takes the networks of `loaded`."""
    if setup.runtime == "torch":
        from worker.pipelines.torch_compiled import open_torch

        return open_torch(
            loaded, setup.device, setup.precision, (setup.batch,), compiles=setup.compiles, cache=Path(setup.cache)
        )
    from worker.pipelines.onnx import open_onnx

    return open_onnx(
        loaded.folder, runtime=setup.runtime, precision=setup.precision, device=setup.device,
        batch_sizes=(setup.batch,), cache=Path(setup.cache),
    )  # fmt: skip


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
