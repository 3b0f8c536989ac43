"""Measures the engine and stock diffusers on the same weights, device and run."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.core.model.specs import Shape, Spec
from worker.bench.stock import Stock, Work
from worker.model import sampler
from worker.model.checkpoint import Checkpoint
from worker.model.stages import Decoder, Denoiser, TextEncoder
from worker.model.text import Prompts
from worker.model.unet import flops
from worker.pipelines.diffusion import DiffusionPipeline
from worker.pipelines.torch_compiled import DTYPES

PROMPTS = ("a red mug on a wooden table", "a blue chair, studio photo", "a small green lamp", "two yellow bottles")
Render = Callable[[], object]


@dataclass
class Contender:
    """One way to render the batch, and the seconds of each of its rounds."""

    name: str
    render: Render
    seconds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.seconds)


def interleave(contenders: list[Contender], rounds: int, device: torch.device, say: Callable[[str], None]) -> None:
    """Runs each once to warm up, then in turns, so that other load on the machine affects all alike."""
    for number in range(rounds + 1):
        for contender in contenders:
            began = time.perf_counter()
            contender.render()
            _wait(device)
            seconds = time.perf_counter() - began
            if number:
                contender.seconds.append(seconds)
            else:
                say(f"  {contender.name}: first batch {seconds:.1f} s")


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
    latents = compiled.to_device(np.stack([pipeline._noise(spec) for spec in work.specs]))

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
    loaded: Callable[[], Checkpoint], name: str, *, device: torch.device, batch: int, precisions: list[str],
    runtimes: list[str], cache: Path, rounds: int, compiles: bool, say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Renders the same batch with every contender and returns the figures. `loaded` returns a fresh checkpoint."""
    first = loaded()
    index, work = first.index, work_of(first, batch)
    say(
        f"{name}: {index.default_size[0]}x{index.default_size[1]}, {index.default_steps} steps, batch {batch}, {device}"
    )
    costs = counted(first, work.shape, batch)
    contenders = [_stock(loaded(), work, device, "fp32", compiles=False)]  # the baseline of all ratios
    if device.type == "cuda":
        contenders.append(_stock(loaded(), work, device, "fp16", compiles=False))
        if compiles:
            contenders.append(_stock(loaded(), work, device, "fp16", compiles=True))
    ours: list[tuple[Contender, DiffusionPipeline]] = []
    for precision in precisions:
        for runtime in runtimes:
            if runtime == "onnxruntime" and precision != "fp32":
                continue
            pipeline = _pipeline(loaded, first.folder, runtime, precision, device, (batch,), cache, compiles)
            contender = Contender(f"{runtime} {precision}", lambda p=pipeline: p.render(work.batch, _no_step))  # type: ignore[misc]
            ours.append((contender, pipeline))
    interleave([*contenders, *(contender for contender, _ in ours)], rounds, device, say)
    baseline = contenders[0]
    total = costs["encode_text"] + costs["denoise"] + costs["decode"]
    found: dict[str, Any] = {
        "model": name, "batch": batch, "device": _device_name(device), "steps": index.default_steps,
        "size": list(index.default_size), "gflop_an_image": round(total / batch / 1e9, 2),
        "unet_flops_saved": round(1 - costs["denoise"] / costs["denoise_unsaved"], 4),
        "torch": torch.__version__, "contenders": [],
    }  # fmt: skip
    rates: dict[str, float] = {}
    everyone: list[tuple[Contender, DiffusionPipeline | None]] = [*((stock, None) for stock in contenders), *ours]
    for contender, used in everyone:
        precision = contender.name.rpartition(" ")[2]
        rate = rates.setdefault(precision, matrix_rate(device, DTYPES[precision]))
        found["contenders"].append(
            {
                "name": contender.name,
                "images_a_second": round(batch / contender.best, 4),
                "ms_an_image": round(contender.best / batch * 1000, 2),
                "ratio": round(baseline.best / contender.best, 3),
                "ratio_median": round(statistics.median(baseline.seconds) / statistics.median(contender.seconds), 3),
                "matrix_tflops": round(rate / 1e12, 3),
                "of_arithmetic_limit": round(total / contender.best / rate, 3),
                "ms_a_batch": None if used is None else per_network(used, work, device),
            }
        )
    for _, pipeline in ours:
        pipeline.close()
    return found


def work_of(loaded: Checkpoint, batch: int) -> Work:
    index = loaded.index
    width, height = index.default_size
    return Work(
        tuple(
            Spec(loaded.revision, PROMPTS[n % len(PROMPTS)], "", n, width, height, index.default_steps, 7.5)
            for n in range(batch)
        )
    )


def _stock(loaded: Checkpoint, work: Work, device: torch.device, precision: str, *, compiles: bool) -> Contender:
    stock = Stock(loaded, device, DTYPES[precision], compiles=compiles)
    how = "compiled" if compiles else "eager"
    return Contender(f"stock diffusers {how} {precision}", lambda: stock.render(work))


def _pipeline(
    loaded: Callable[[], Checkpoint], folder: Path, runtime: str, precision: str, device: torch.device,
    batch_sizes: tuple[int, ...], cache: Path, compiles: bool,
) -> DiffusionPipeline:  # fmt: skip
    if runtime == "torch":
        from worker.pipelines.torch_compiled import open_torch

        return open_torch(loaded(), str(device), precision, batch_sizes, compiles=compiles, cache=cache)
    from worker.pipelines.onnx import open_onnx

    return open_onnx(
        folder, runtime=runtime, precision=precision, device=str(device), batch_sizes=batch_sizes, cache=cache
    )


def _no_step(_step: int) -> None:
    """Steps are not reported."""


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
