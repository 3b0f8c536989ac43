"""mini: how often presswork-mini draws the thing, the colour and the background that a prompt names, for the
500 combinations held out of its training, at 10 steps. A network trained on drawings classifies the things. Each figure
is compared with the same one for drawings of these combinations."""

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
