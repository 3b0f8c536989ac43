"""This machine's CPU: the properties that decide bytes, and the number of threads to use."""

import os
import platform
from pathlib import Path

from services.core import cpus

# Each of these changes which kernels are chosen, and thus the last bits of results.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "sve", "bf16")


def cpu_kind() -> str:
    """The architecture, the CPU's name (kernels are tiled for its caches) and its instruction sets."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = fields.get("flags", fields.get("Features", "")).split()
    has = "+".join(name for name in _INSTRUCTIONS if name in flags)
    return " ".join(part for part in (platform.machine(), fields.get("model name", ""), has) if part).replace("/", "-")


def thread_count() -> int:
    """OMP_NUM_THREADS, as torch reads it and a worker sets it; else the number of CPUs that this process may use."""
    configured = os.environ.get("OMP_NUM_THREADS", "")
    if configured.isdigit() and int(configured) > 0:
        return int(configured)
    return cpus.available()
