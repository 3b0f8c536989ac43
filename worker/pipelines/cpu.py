"""This machine's CPU: what of it decides bytes, and how many of its threads are ours."""

import os
import platform
from pathlib import Path

# Each of these changes which kernels are chosen, and so the last bits.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "sve", "bf16")


def cpu_kind() -> str:
    """The machine, its CPU's name (kernels are cut to the caches of a model) and the instructions that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    said = {name.strip(): value.strip() for name, value in lines.items()}
    flags = said.get("flags", said.get("Features", "")).split()
    has = "+".join(name for name in _INSTRUCTIONS if name in flags)
    return " ".join(part for part in (platform.machine(), said.get("model name", ""), has) if part).replace("/", "-")


def threads_here() -> int:
    """OMP_NUM_THREADS, as for torch; else the number of CPUs that this process may use."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
