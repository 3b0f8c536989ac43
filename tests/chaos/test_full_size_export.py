"""A full-size model is exported for accelerators on a machine with 16 GB of memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.model import static_graphs
from worker.model.make import make

MEMORY = 16e9  # bytes


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_a_full_size_model_is_exported_within_16_gb(tmp_path: Path) -> None:
    make(tmp_path / "full", "full")
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "worker.model", "export", str(tmp_path / "full"), "-o", str(out)]
    )
    _, code, used = os.wait4(process.pid, 0)
    assert code == 0
    print(f"peak {used.ru_maxrss / 2**20:.1f} GiB, {(used.ru_utime + used.ru_stime) / 60:.1f} minutes of CPU")
    assert used.ru_maxrss * 1024 <= MEMORY
    exported = static_graphs.read(out)
    assert exported.size == (512, 512)
    assert exported.graph("unet", 1).inputs[0].shape == (2, 4, 64, 64)
    assert exported.files["unet.bin"]["bytes"] >= 4 * 525_277_444
