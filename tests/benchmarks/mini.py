"""mini: how often presswork-mini draws the thing, the colour and the background that a prompt names, over the 500
combinations kept out of its training, 10 steps. The judge of things is a network trained on drawings alone; beside
each figure is the judges' own on drawings of the same combinations."""

from tests.benchmarks.report import report
from worker.model.mini.figures import figures


def run() -> None:
    found = figures()
    drawn, real = found.pop("model"), found.pop("drawings")
    report(
        "mini", drawn["thing"], real["thing"], "share with the right thing", "the same judge on drawings",
        colour=drawn["colour"], colour_of_drawings=real["colour"],
        background=drawn["background"], background_of_drawings=real["background"], **found,
    )  # fmt: skip
