"""Writes networks as ONNX files whose weights lie in one file beside them, and how the exporters tidy the graphs.

What is written depends only on the network and the libraries' versions: no path and no time of this machine is in it.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 4096  # bytes, so that each tensor starts on a page when the file is memory-mapped


class Weights:
    """The tensors of some networks, by name, and their places in the file `name`."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name, self._tensors = name, tensors
        self._offsets: dict[str, int] = {}
        end = 0
        for tensor in sorted(tensors):
            self._offsets[tensor] = end
            end += -(-_bytes(tensors[tensor]) // ALIGNMENT) * ALIGNMENT

    def write(self, file: Path) -> None:
        with file.open("wb") as stream:
            for name, offset in self._offsets.items():
                stream.seek(offset)
                stream.write(memoryview(self._tensors[name].detach().contiguous().numpy()).cast("B"))

    def refer(self, model: Any) -> None:
        """Makes the graph's initializers that are among these tensors refer to the file."""
        import onnx_ir as ir

        for name, value in model.graph.initializers.items():
            if name in self._tensors:
                place = (self.name, self._offsets[name], _bytes(self._tensors[name]))
                shape = value.const_value.shape
                value.const_value = ir.ExternalTensor(*place, dtype=value.dtype, shape=shape, name=name)


def write(
    network: nn.Module, file: Path, arguments: Sequence[Any], *, inputs: Sequence[str], outputs: Sequence[str],
    opset: int, weights: Weights, finish: Callable[[Any], None] = lambda _: None,
) -> None:  # fmt: skip
    """The graph of `network.forward(*arguments)`, with the arguments' shapes. `finish` may change the tidied graph,
    an onnx_ir.Model, before it is saved."""
    import onnx_ir as ir

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            tuple(arguments),
            dynamo=True,
            opset_version=opset,
            optimize=False,
            verbose=False,
            input_names=list(inputs),
            output_names=outputs,
        )
        assert program is not None
        _tidy(program.model)
        finish(program.model)
        weights.refer(program.model)
        ir.save(program.model, file)


def _tidy(model: Any) -> None:
    from onnx_ir.passes import Sequential, common
    from onnxscript import optimizer

    # Folds all constants except the weights' transposes, which would copy the weights into every graph. Skips
    # onnxscript's rewriting rules: they take as long as all the rest, and the runtimes have better ones.
    optimizer.fold_constants(
        model, onnx_shape_inference=True, should_fold=lambda node: False if node.op_type == "Transpose" else None
    )
    tidy = Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.ClearMetadataAndDocStringPass(),  # removes stack traces, which contain this machine's paths
    )
    tidy(model)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's messages about optional libraries that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
