"""Takes the place of the SDK's module qaicrt. SURFACE.md says where each of these calls is documented.

A run computes when it is enqueued; its outputs are handed out when the virtual clock says that it has ended.
"""

import enum
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from worker.pipelines.ai100_stand_in import container, machine
from worker.pipelines.ai100_stand_in.io_descriptor import BUFFER_IO_TYPE_INPUT, BUFFER_IO_TYPE_OUTPUT, OF_ONNX
from worker.pipelines.cpu import thread_count

__all__ = [
    "BufferDimensionsVecRef", "Context", "ExecObj", "Program", "ProgramGroup", "QAicProgramGroupProperties",
    "QAicProgramGroupPropertiesProtocol", "QAicProgramProperties", "QBuffer", "QIDList", "QStatus", "Qpc", "Queue",
    "Util",
]  # fmt: skip
NUMPY = {1: np.float32, 2: np.uint8, 3: np.int8, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16}


class QStatus(enum.IntEnum):
    QS_SUCCESS = 0
    QS_PERM = 1
    QS_AGAIN = 2
    QS_NOMEM = 3
    QS_BUSY = 4
    QS_NODEV = 5
    QS_INVAL = 6
    QS_NOSPC = 7
    QS_BADFD = 8
    QS_TIMEDOUT = 9
    QS_PROTOCOL = 10
    QS_UNSUPPORTED = 11
    QS_DEV_ERROR = 300
    QS_ERROR = 500


REFUSALS = {"activation": QStatus.QS_ERROR, "held": QStatus.QS_BUSY, "forbidden": QStatus.QS_PERM}  # by fault


class QIDList(list[int]):
    pass


class BufferDimensionsVecRef(list[tuple[int, list[int]]]):
    pass


class QBuffer:
    """Refers to the caller's bytes, and does not keep an array of them alive."""

    def __init__(self, data: Any) -> None:
        self._held = (lambda: data) if isinstance(data, bytes) else weakref.ref(data)
        self.size = self.data.nbytes

    @property
    def data(self) -> memoryview:
        if (held := self._held()) is None:
            raise RuntimeError("the memory of a QBuffer is gone")
        return memoryview(held).cast("B")

    def __bytes__(self) -> bytes:
        return self.data.tobytes()


class QAicProgramProperties:
    def __init__(self) -> None:
        self.dataPathTimeoutMs = 60_000
        self.SubmitNumRetries, self.SubmitRetryTimeoutMs, self.devMapping = 5, 5000, ""


class QAicProgramGroupPropertiesProtocol(enum.IntEnum):
    QAIC_PROGRAM_GROUP_PROTOCOL_CONTROL_PATH = 0
    QAIC_PROGRAM_GROUP_PROTOCOL_DATA_PATH = 1


class QAicProgramGroupProperties:
    def __init__(self) -> None:
        self.protocolSelect = QAicProgramGroupPropertiesProtocol.QAIC_PROGRAM_GROUP_PROTOCOL_CONTROL_PATH


class Util:
    def getAicVersion(self) -> tuple[QStatus, int, int, int, str]:  # noqa: N802
        return (QStatus.QS_SUCCESS, *machine.version(), machine.NAME)

    def getResourceInfo(self, number: int) -> tuple[QStatus, Any]:  # noqa: N802
        if number not in machine.numbers():
            return QStatus.QS_NODEV, None
        if machine.fault("permission"):
            return QStatus.QS_DEV_ERROR, None
        one, card = machine.device(number), machine.card()
        return QStatus.QS_SUCCESS, SimpleNamespace(
            nspTotal=card.cores, nspFree=one.cores_free, dramTotal=card.memory_mib, dramFree=one.mib_free
        )


class Context:
    def __init__(self, numbers: Sequence[int] = (0,)) -> None:
        if machine.fault("permission"):
            raise RuntimeError("QS_PERM: Permission denied: /dev/accel")
        try:
            self.devices = {number: machine.device(number) for number in numbers}
        except KeyError as error:
            raise RuntimeError(f"QS_NODEV: no device {error}") from None


class Qpc:
    def __init__(self, folder: str) -> None:
        self.file = Path(folder, container.FILE)
        try:
            self.header = container.read(self.file)
        except ValueError as error:
            raise RuntimeError(f"QS_INVAL: {error}") from None

    def getIoDescriptor(self) -> tuple[QStatus, bytes]:  # noqa: N802
        header = self.header
        bindings: list[dict[str, Any]] = []
        for way, tensors in ((BUFFER_IO_TYPE_INPUT, header.inputs), (BUFFER_IO_TYPE_OUTPUT, header.outputs)):
            for name, element, dims in tensors:
                shape = (2 * dims[0], *dims[1:]) if machine.fault("shape") else dims
                kind, width = OF_ONNX[element]
                size = width * int(np.prod(shape))
                bindings.append(
                    {"name": name, "index": len(bindings), "type": kind, "dir": way, "dims": shape, "size": size}
                )
        return QStatus.QS_SUCCESS, json.dumps({"program_name": header.network, "bindings": bindings}).encode()


class Program:
    def __init__(
        self, context: Context, number: int, qpc: Qpc, properties: QAicProgramProperties | None = None
    ) -> None:
        self.device, self.qpc, self.properties = context.devices[number], qpc, properties
        self.is_active = False
        self.running: weakref.WeakSet[ExecObj] = weakref.WeakSet()
        self.group: ProgramGroup | None = None
        self._graph: Any = None
        self._mib = -(-qpc.file.stat().st_size >> 20)

    def load(self) -> QStatus:
        from worker.pipelines.onnxruntime_graphs import Graph

        """Takes memory, which is given back when the program is no longer held."""
        if self._mib > self.device.mib_free:
            return QStatus.QS_NOMEM
        self.device.mib_used += self._mib
        weakref.finalize(self, _give_back, self.device, self._mib)
        self._folder, file = container.unpack(self.qpc.file)
        self._graph = Graph(file, "fp32", thread_count())
        return QStatus.QS_SUCCESS

    def activate(self) -> QStatus:
        cores = self.qpc.header.cores
        if self.device.lost:
            return QStatus.QS_DEV_ERROR
        for name, status in REFUSALS.items():
            if machine.fault(name):
                return status
        if cores > self.device.cores_free:
            return QStatus.QS_ERROR  # which is what the runtime makes of whatever is short
        self.device.cores_used += cores
        self.is_active = True
        self.device.free_at[id(self)] = machine.CLOCK.switch(self.device)
        return QStatus.QS_SUCCESS

    def deactivate(self) -> QStatus:
        if self.running:  # as the runtime refuses while an execution object lives
            return QStatus.QS_INVAL
        if self.is_active:
            self.device.cores_used -= self.qpc.header.cores
            self.is_active = False
        return QStatus.QS_SUCCESS

    def compute(self, buffers: Sequence[QBuffer]) -> list[Any]:
        header = self.qpc.header
        given: dict[str, Any] = {
            name: np.frombuffer(buffer.data, NUMPY[element]).reshape(dims)
            for (name, element, dims), buffer in zip(header.inputs, buffers, strict=False)
        }
        found: list[Any] = self._graph.run(given)
        return found

    def reserve(self) -> float:
        """When a run that is asked for now will have ended."""
        header, clock = self.qpc.header, machine.CLOCK
        if self.group is not None:
            began = self.group.turn_to(self, clock.now())
        else:
            began = max(clock.now(), self.device.free_at.get(id(self), 0.0))
        ends = began + machine.times().run(header.network, header.cores) * header.batch
        self.device.free_at[id(self.group or self)] = ends
        return ends


class ProgramGroup:
    """Programs of which one is resident; the device switches when a run of another one is enqueued."""

    def __init__(self, context: Context, number: int, name: str, properties: QAicProgramGroupProperties) -> None:
        self.context, self.number, self.name = context, number, name
        self.device, self._properties = context.devices[number], properties
        self._programs: list[Program] = []
        self._there: Program | None = None
        self._cores = 0

    def addProgram(self, qpc: Qpc) -> tuple[QStatus, Program | None]:  # noqa: N802
        if self._cores:
            return QStatus.QS_INVAL, None
        program = Program(self.context, self.number, qpc)
        status = program.load()
        if status == QStatus.QS_SUCCESS:
            self._programs.append(program)
        return status, program

    def enable(self) -> QStatus:
        cores = max(program.qpc.header.cores for program in self._programs)
        for name, status in REFUSALS.items():
            if machine.fault(name):
                return status
        if cores > self.device.cores_free:
            return QStatus.QS_ERROR
        self.device.cores_used += cores
        self._cores = cores
        for program in self._programs:
            program.group, program.is_active = self, True
        return QStatus.QS_SUCCESS

    def disable(self, force: bool, timeout_ms: int) -> QStatus:  # noqa: ARG002  the SDK's signature
        self.device.cores_used -= self._cores
        self._cores = 0
        for program in self._programs:
            program.group, program.is_active = None, False
        self._programs.clear()
        self._there = None
        return QStatus.QS_SUCCESS

    def enqueue(self, running: "ExecObj") -> QStatus:
        return running.run_now()

    def turn_to(self, program: Program, now: float) -> float:
        """When the program can run: the device waits for what it was given before, and switches, on its own time."""
        began = max(now, self.device.free_at.get(id(self), 0.0))
        if self._there is program:
            return began
        self._there = program
        machine.CLOCK.switches += 1
        data_path = QAicProgramGroupPropertiesProtocol.QAIC_PROGRAM_GROUP_PROTOCOL_DATA_PATH
        table = machine.times()
        return began + (table.switch_dps if self._properties.protocolSelect == data_path else table.switch)


def _give_back(device: machine.Device, mib: int) -> None:
    device.mib_used -= mib


class ExecObj:
    def __init__(self, context: Context, program: Program) -> None:  # noqa: ARG002  the SDK's signature
        self.program = program
        program.running.add(self)
        self.status, self.ends = QStatus.QS_SUCCESS, 0.0
        self._buffers: list[QBuffer] = []

    def setData(self, buffers: Sequence[QBuffer], dims: Any = None) -> QStatus:  # noqa: N802, ARG002
        header = self.program.qpc.header
        sizes = [OF_ONNX[element][1] * int(np.prod(shape)) for _, element, shape in (*header.inputs, *header.outputs)]
        if [buffer.size for buffer in buffers] != sizes:
            return QStatus.QS_INVAL
        self._buffers = list(buffers)
        return QStatus.QS_SUCCESS

    def run_now(self) -> QStatus:
        device, clock = self.program.device, machine.CLOCK
        if device.lost or not self.program.is_active:
            return QStatus.QS_DEV_ERROR if device.lost else QStatus.QS_INVAL
        number = clock.count(self.program.qpc.header.network)
        self.status, self.ends = QStatus.QS_SUCCESS, self.program.reserve()
        if number == machine.fault_in("lost"):
            device.lost, self.status = True, QStatus.QS_DEV_ERROR
        elif number == machine.fault_in("timeout"):
            self.status = QStatus.QS_ERROR  # which is what the runtime makes of it
        else:
            inputs = len(self.program.qpc.header.inputs)
            for place, found in enumerate(self.program.compute(self._buffers), start=inputs):
                self._buffers[place] = QBuffer(np.asarray(found).tobytes())
        return QStatus.QS_SUCCESS

    def waitForCompletion(self) -> QStatus:  # noqa: N802
        machine.CLOCK.wait_until(self.ends)
        assert all(buffer.data for buffer in self._buffers), "a device reads and writes until now"
        return self.status

    def getData(self) -> tuple[QStatus, list[QBuffer]]:  # noqa: N802
        return self.status, self._buffers


class Queue:
    def __init__(self, context: Context, number: int) -> None:
        self.device = context.devices[number]

    def enqueue(self, running: ExecObj) -> QStatus:
        return running.run_now()
