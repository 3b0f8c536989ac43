"""scores: how long the scorers that ship take for one image of 512x512, against encoding it as PNG."""

import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from services.core.model.scores import USUAL
from tests.benchmarks.report import report
from worker import encoding, scorer
from worker.provenance import Provenance

PICTURES, ROUNDS = 20, 15


def run() -> None:
    scorers = {name: scorer.open_scorer(name) for name in USUAL}
    pictures = [picture(seed) for seed in range(PICTURES)]
    each = {
        name: milliseconds(lambda pixels, score=score: score(pixels, ""), pictures) for name, score in scorers.items()
    }
    together = milliseconds(lambda pixels: [score(pixels, "") for score in scorers.values()], pictures)
    encoded = milliseconds(lambda pixels: encoding.encode(pixels, "png", None, Provenance("", "")), pictures)
    report(
        "scores", together, encoded, "ms for all scores of a 512x512 image (median)", "encoding it as PNG",
        **{name: f"{taken:.2f} ms" for name, taken in each.items()},
    )  # fmt: skip


def picture(seed: int) -> np.ndarray:
    """Blurred shapes and a little noise, as a photograph has both."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    smooth = coarse.resize((512, 512), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    return (np.asarray(smooth) + random.normal(0, 3, (512, 512, 3))).clip(0, 255).astype(np.uint8)


def milliseconds(verb: Callable[[np.ndarray], object], pictures: list[np.ndarray]) -> float:
    taken = []
    for _ in range(ROUNDS):
        for pixels in pictures:
            began = time.perf_counter()
            verb(pixels)
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)
