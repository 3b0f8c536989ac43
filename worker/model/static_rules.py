"""What a graph for accelerators must be: static in its shapes, free of some operators, and within FP16's range."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from services.core.model.errors import SettingsError
from worker.model.static_graphs import Clipped, Tensor

FP16_MAX = 65504.0
# Operators that the published recipes patched away, and what else no graph may have: where exporters put it.
REFUSED_OPERATORS: Mapping[str, str] = {
    "Trilu": "a causal mask that is made at run time",
    "IsNaN": "a softmax that is guarded against rows without a token",
    "IsInf": "a check of numbers, which is the host's",
    "GroupNormalization": "a group norm that is not taken apart into InstanceNormalization",
    "Attention": "an attention that is not written out as products and a softmax",
    "Einsum": "a product that is not written out",
    "Sin": "angles of timesteps, for which FP16 is too coarse",
    "Cos": "angles of timesteps, for which FP16 is too coarse",
    "RandomNormal": "noise, which is the host's",
    "RandomNormalLike": "noise, which is the host's",
    "Shape": "a shape that is read at run time",
    "ConstantOfShape": "a constant that is made at run time",
    "Range": "a constant that is made at run time",
    "NonZero": "a shape that depends on numbers",
    "If": "a branch",
    "Loop": "a loop",
    "Scan": "a loop",
}


def check(network: str, graph: Any) -> None:
    """Raises SettingsError, in one sentence, if the onnx_ir.Graph has a refused operator or an open shape."""
    for node in graph:
        if why := REFUSED_OPERATORS.get(node.op_type):
            raise SettingsError(f"The model's {network} cannot be exported: it needs {node.op_type} ({why}).")
    for value in (*graph.inputs, *graph.outputs):
        if not all(isinstance(side, int) for side in value.shape):
            raise SettingsError(f"The model's {network} cannot be exported: the shape of {value.name} is not static.")


def describe(values: Any) -> tuple[Tensor, ...]:
    """Inputs or outputs of an onnx_ir.Graph."""
    return tuple(Tensor(value.name, value.dtype.numpy().name, tuple(map(int, value.shape))) for value in values)


def clip_weights(network: str, module: nn.Module) -> list[Clipped]:
    """Clips the module's tensors, in place."""
    found = []
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and (extreme := float(tensor.abs().max())) > FP16_MAX:
            found.append(Clipped(network, name, int((tensor.abs() > FP16_MAX).sum()), extreme))
            tensor.clamp_(-FP16_MAX, FP16_MAX)
    return found


def clip_constants(network: str, graph: Any) -> list[Clipped]:
    """Clips the initializers of an onnx_ir.Graph that are not weights. An infinite one is clipped, too."""
    import onnx_ir as ir

    found = []
    for name, value in graph.initializers.items():
        constant = value.const_value.numpy()
        if not np.issubdtype(constant.dtype, np.floating) or not constant.size:
            continue
        outside = np.abs(constant) > FP16_MAX
        if outside.any():
            found.append(Clipped(network, name, int(outside.sum()), float(np.abs(constant).max())))
            value.const_value = ir.tensor(constant.clip(-FP16_MAX, FP16_MAX).astype(constant.dtype), name=name)
    return found
