"""Training in several processes of one thread each: on busy cores they wait for one another once a step, not once an
operation. Every process takes its own share of the batch; gradients are averaged, so the weights stay equal."""

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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the others, daemons, end as well
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (stage, config, minutes, processes, str(Path(meeting) / "store"))
        multiprocessing.spawn(_enter, args=arguments, nprocs=processes, daemon=True)


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def average(parameters: Iterable[torch.nn.Parameter], number: float) -> float:
    """Averages the gradients over the processes, in place, and `number`, which is returned."""
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


def mine(number: int) -> bool:
    """Whether piece `number` of work that is split is this process's."""
    return not distributed.is_initialized() or number % distributed.get_world_size() == rank()


def add_up(pieces: torch.Tensor) -> None:
    """Adds the processes' tensors up, in place."""
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
