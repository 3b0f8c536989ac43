"""Takes the place of the SDK's QAicApi_pb2: the description of a program's buffers, which here travels as JSON."""

import json
from types import SimpleNamespace
from typing import Any

BUFFER_IO_TYPE_INPUT, BUFFER_IO_TYPE_OUTPUT = 0, 1
FLOAT_TYPE, FLOAT_16_TYPE, INT8_Q_TYPE, UINT8_Q_TYPE, INT16_Q_TYPE, INT32_Q_TYPE = range(6)
INT32_I_TYPE, INT64_I_TYPE, INT8_TYPE = 6, 7, 8
# ONNX element types: float, uint8, int8, int16, int32, int64, bool, float16; and their bytes.
OF_ONNX = {
    1: (FLOAT_TYPE, 4), 2: (UINT8_Q_TYPE, 1), 3: (INT8_TYPE, 1), 5: (INT16_Q_TYPE, 2), 6: (INT32_I_TYPE, 4),
    7: (INT64_I_TYPE, 8), 9: (INT8_TYPE, 1), 10: (FLOAT_16_TYPE, 2),
}  # fmt: skip


class IoDesc:
    """With the fields that a reader of programs needs."""

    def __init__(self) -> None:
        self.io_sets: list[Any] = []
        self.selected_set = SimpleNamespace(name="default", bindings=[])
        self.allowed_shapes: list[Any] = []
        self.program_name = ""

    def ParseFromString(self, data: bytes) -> int:  # noqa: N802  the name of protobuf
        found = json.loads(data)
        self.program_name = found["program_name"]
        self.selected_set.bindings = [SimpleNamespace(**binding) for binding in found["bindings"]]
        self.io_sets = [self.selected_set]
        return len(data)
