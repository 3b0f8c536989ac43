"""`presswork bench engine`: measures the engine on this machine; prints a table and writes JSON.

Needs the source tree, torch, transformers and diffusers, but no network: the model is made locally.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from services.core.model.errors import PressworkError
from worker.bench.measure import measure
from worker.model import make
from worker.model.directory import check_model_dir
from worker.model.presets import PRESETS
from worker.pipelines.torch_compiled import DTYPES, find_device

ROUNDS = 5


def show(found: dict[str, Any]) -> str:
    """The table, in 80 columns. `of matmul` is FLOP/s relative to a large matrix product in torch, which is not the
    fastest possible one on a CPU."""
    lines = [
        (
            f"{found['model']}, batch {found['batch']}, {found['size'][0]}x{found['size'][1]}, {found['steps']} steps"
            f" on {found['device']}"
        ),
        f"{found['gflop_an_image']:,} GFLOP an image; exact savings {found['unet_flops_saved']:.1%} of the U-Net",
        f"{'':32}{'images/s':>10}{'ms/image':>10}{'ratio':>8}{'of matmul':>10}",
    ]
    for one in found["contenders"]:
        lines.append(
            f"{one['name']:32}{one['images_a_second']:>10.3f}{one['ms_an_image']:>10.1f}{one['ratio']:>8.2f}"
            f"{one['of_arithmetic_limit']:>10.2f}"
        )
        if one["ms_a_batch"]:
            parts = ", ".join(f"{name} {ms:,.1f}" for name, ms in one["ms_a_batch"].items())
            lines.append(f"    ms a batch: {parts}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="presswork bench engine",
        description="Renders the same batch with this engine and with stock diffusers, in turns, and compares.",
    )
    parser.add_argument("--model", metavar="DIR", help="a checkpoint (default: one made with random weights)")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="the model to make (CPU: mini; CUDA: full)")
    parser.add_argument(
        "--compare", action="append", default=[], choices=tuple(PRESETS), help="another model after it: sd15, say"
    )
    parser.add_argument("--device", default="", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument(
        "--batch", action="append", type=int, metavar="N", help="images a batch (CPU: 8; CUDA: 16); may repeat"
    )
    parser.add_argument("--precision", action="append", choices=tuple(DTYPES), help="may be given several times")
    parser.add_argument(
        "--runtime", action="append", choices=("torch", "openvino", "onnxruntime"), help="may be given several times"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="timed rounds of each (default: 5)")
    parser.add_argument("--eager", action="store_true", help="on CUDA: compile nothing")
    parser.add_argument(
        "--budget", type=float, default=float("inf"), metavar="S", help="begin nothing new after S seconds"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        device = find_device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_cuda = device.type == "cuda"
        results = []
        with tempfile.TemporaryDirectory(prefix="presswork-bench-") as scratch:
            for number, preset in enumerate([given.preset or ("full" if on_cuda else "mini"), *given.compare]):
                named = bool(given.model) and number == 0
                folder = check_model_dir(given.model) if named else Path(scratch) / preset
                if not folder.exists():
                    _say(f"making {preset} with random weights")
                    make.make(folder, preset)
                for batch in given.batch or ([16, 1] if on_cuda else [8]):
                    if time.monotonic() - began > given.budget:
                        _say(f"no time left for {preset} at batch {batch}")
                        continue
                    results.append(
                        measure(
                            folder, folder.name, device=device, batch=batch,
                            precisions=given.precision or (["fp16"] if on_cuda else ["fp32", "bf16"]),
                            runtimes=given.runtime or (["torch"] if on_cuda else ["torch", "openvino", "onnxruntime"]),
                            cache=Path(scratch) / "artefacts", rounds=given.rounds, compiles=not given.eager, say=_say,
                        )
                    )  # fmt: skip
                    sys.stdout.write(show(results[-1]) + "\n\n")
                    sys.stdout.flush()
                    if given.json:
                        given.json.write_text(json.dumps(results, indent=1) + "\n")
    except PressworkError as error:
        sys.stderr.write(f"presswork bench: {error}\n")
        return 1
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
