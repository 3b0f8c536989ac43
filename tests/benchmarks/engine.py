"""engine: images a second of the mini-sized model on this machine, against stock diffusers, eager, in float32."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.report import report


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="presswork-bench-") as folder:
        file = Path(folder) / "engine.json"
        command = [sys.executable, "-m", "worker.bench", "--json", str(file)]
        subprocess.run(command, check=True)
        (found,) = json.loads(file.read_text())
    stock, *engines = found["contenders"]
    exact = max((one for one in engines if one["name"].endswith("fp32")), key=lambda one: one["ratio"])
    fastest = max(engines, key=lambda one: one["ratio"])
    report(
        "engine", exact["images_a_second"], stock["images_a_second"], f"images/s ({exact['name']})", stock["name"],
        fastest=f"{fastest['name']}: {fastest['images_a_second']} images/s, ratio {fastest['ratio']}",
        model=found["model"], batch=found["batch"], device=found["device"], gflop_an_image=found["gflop_an_image"],
        unet_flops_saved=found["unet_flops_saved"], contenders=found["contenders"],
    )  # fmt: skip
