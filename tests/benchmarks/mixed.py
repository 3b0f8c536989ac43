"""mixed: a job on workers of different speeds, in virtual time and by the real rule of the tail, beside the ideal time
(as if images could be divided) and beside the same without the rule."""

from tests.benchmarks.report import report
from tests.virtual_fleet import Worker, ideal, render

IMAGES = 2_000
GPU, CARD, CPU = Worker(1 / 40, 16), Worker(1 / 8, 1), Worker(1.0, 1)
MIXES = {
    "1:8:40, batches of 1, 1 and 16": (CPU, CARD, GPU),
    "the same, ten times slower": (Worker(10.0, 1), Worker(10 / 8, 1), Worker(10 / 40, 16)),
    "1:8:40, batches of 16 each": (Worker(1.0, 16), Worker(1 / 8, 16), GPU),
    "1:1:1, batches of 16": (Worker(0.25, 16),) * 3,
    "two of each": (CPU, CARD, GPU) * 2,
    "1:200, batches of 1 and 32": (Worker(5.0, 1), Worker(1 / 40, 32)),
    "eight cards beside one GPU with long batches": (*(Worker(0.971, 1),) * 8, Worker(0.5, 64)),
    "a GPU whose batch takes a third of the job": (CARD, Worker(1 / 40, 512)),
}


def run() -> None:
    rows = {}
    for name, workers in MIXES.items():
        best = ideal(workers, IMAGES)
        rows[name] = {
            "with": render(workers, IMAGES).seconds / best,
            "without": render(workers, IMAGES, by_rule=False).seconds / best,
        }
    [(_, first), *_] = rows.items()
    report(
        "mixed", first["with"], first["without"], f"of the ideal time, {IMAGES:,} images on 1:8:40", "without the rule",
        **{name: f"{row['with']:.3f}, without the rule {row['without']:.3f}" for name, row in rows.items()},
    )  # fmt: skip
