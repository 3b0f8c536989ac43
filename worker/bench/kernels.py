"""Where a batch's time goes on a GPU: by kind of kernel, and by kernel."""

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

LARGEST, GAPS = 60, 12  # kernels, and pauses between kernels, that are listed
# The first kind with one of its words in a kernel's name, in small letters, has it.
_KINDS = (
    ("norm", ("triton_red", "triton_per", "moments", "finish", "apply", "rowwisemoments")),
    ("pointwise", ("triton_poi", "triton_for", "elementwise", "catarray", "upsample")),
    ("attention", ("flash", "fmha", "sdpa", "attention")),
    ("convolution", ("fprop", "conv", "winograd", "cudnn")),
    ("matrix product", ("gemm", "nvjet", "cutlass", "splitk", "triton_tem")),
    ("transfer", ("memcpy", "memset")),
)


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in _KINDS if any(word in name for word in words)), "other")


def table(render: Callable[[], object]) -> dict[str, Any]:
    """Milliseconds of a batch by kind of kernel and for the largest kernels, from torch's profiler, and the share of
    the time from the first kernel to the last in which the device was idle."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        render()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        ms = (event.time_range.end - event.time_range.start) / 1000
        kinds[kind_of(event.name)] += ms
        names[event.name][0] += ms
        names[event.name][1] += 1
    largest = sorted(names.items(), key=lambda one: -one[1][0])[:LARGEST]
    span = max((event.time_range.end for event in events), default=0) - min(
        (event.time_range.start for event in events), default=0
    )
    busy = sum(kinds.values())
    ordered = sorted(events, key=lambda event: event.time_range.start)
    gaps = sorted(
        ((after.time_range.start - before.time_range.end) / 1000, before.name[:60], after.name[:60])
        for before, after in pairwise(ordered)
    )[: -1 - GAPS : -1]
    return {
        "busy_ms": round(busy, 2),
        "span_ms": round(span / 1000, 2),
        "launches": len(events),
        "kinds_ms": {kind: round(ms, 2) for kind, ms in sorted(kinds.items(), key=lambda one: -one[1])},
        "gaps": [[round(ms, 3), before, after] for ms, before, after in gaps],
        "largest": [[name[:110], round(ms, 3), int(count)] for name, (ms, count) in largest],
    }
