"""A full-size model is exported for accelerators on a machine with 16 GB of memory, and its U-Net draws as torch's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxscript")

import numpy as np
import onnxruntime
import torch

from worker.model import checkpoint, static_graphs
from worker.model.make import make

MEMORY = 16e9  # bytes


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-4), ("fp16", 5e-3)])
def test_a_full_size_model_is_exported_within_16_gb(tmp_path: Path, precision: str, error: float) -> None:
    make(tmp_path / "full", "full")
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "full"), "-o", str(out), "--precision", precision]
    process = subprocess.Popen([sys.executable, "-P", "-m", "worker.model", *words])
    _, code, used = os.wait4(process.pid, 0)
    assert code == 0
    print(f"peak {used.ru_maxrss / 2**20:.1f} GiB, {(used.ru_utime + used.ru_stime) / 60:.1f} minutes of CPU")
    assert used.ru_maxrss * 1024 <= MEMORY
    exported = static_graphs.read(out)
    assert exported.size == (512, 512)
    unet = exported.graph("unet", 1)
    assert unet.inputs[0].shape == (2, 4, 64, 64)
    assert exported.files["unet.bin"]["bytes"] >= {"fp32": 4, "fp16": 2}[precision] * 525_277_444
    chance = torch.Generator().manual_seed(7)
    given = [torch.randn(one.shape, generator=chance) for one in unet.inputs]
    given[1] = torch.full((2,), 548.0)
    with torch.no_grad():
        wanted = checkpoint.load(tmp_path / "full").unet(*given).numpy()
    session = onnxruntime.InferenceSession(exported.path(unet), providers=["CPUExecutionProvider"])
    fed = {to.name: one.numpy().astype(to.dtype) for to, one in zip(unet.inputs, given, strict=True)}
    difference = session.run(None, fed)[0].astype(np.float64) - wanted
    print(f"largest difference {np.abs(difference).max():.2g} of {np.abs(wanted).max():.2g}")
    assert np.linalg.norm(difference) <= error * np.linalg.norm(wanted)
