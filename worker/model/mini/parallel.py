"""Training in several processes of one thread each, which synchronize once per step instead of once per operation.

Every process takes its share of the batch. Gradients are averaged, so the weights stay equal.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from worker.model.mini.config import Config

Stage = Callable[[Config, float], None]


def run(stage: Stage, config: Config, minutes: float, processes: int) -> None:
    """Runs the stage in `processes` processes; the first one reports and saves."""
    if processes == 1:
        stage(config, minutes)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemon processes end as well
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (stage, config, minutes, processes, str(Path(meeting) / "store"))
        multiprocessing.spawn(_enter, args=arguments, nprocs=processes, daemon=True)


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def average(parameters: Iterable[torch.nn.Parameter], number: float) -> float:
    """Averages the gradients over the processes in place; returns the average of `number`."""
    if not distributed.is_initialized():
        return number
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([torch.tensor([number]), *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    pieces = flat[1:].split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
    return float(flat[0])


def is_mine(number: int) -> bool:
    """Whether piece `number` of divided work belongs to this process."""
    return not distributed.is_initialized() or number % distributed.get_world_size() == rank()


def all_reduce(pieces: torch.Tensor) -> None:
    """Sums the processes' tensors, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(pieces)


def say(line: str) -> None:
    if rank() == 0:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _enter(number: int, stage: Stage, config: Config, minutes: float, processes: int, store: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=processes)
    try:
        stage(config, minutes)
    finally:
        distributed.destroy_process_group()
