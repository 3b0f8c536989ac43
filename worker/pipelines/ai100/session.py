"""One compiled program on one device: named inputs and outputs at fixed shapes, submitted and awaited.

Over the SDK's module `qaicrt`: a Program is loaded once, activated while it is resident, and run by execution objects,
of which each run in flight has its own. An input is handed over without a copy where the SDK allows it, and an output
is copied once, because its buffer serves the next run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import SettingsError
from worker.model.static_graphs import Graph
from worker.pipeline import CompileFailed, DeviceSick, OutOfMemory
from worker.pipelines.ai100 import sdk as sdks
from worker.pipelines.ai100.sdk import Sdk

Array = NDArray[Any]
TIMEOUT_MS = 15_000  # for an answer of the device, well before the worker takes its silence for a hang
DTYPES = {
    "FLOAT_TYPE": np.float32, "FLOAT_16_TYPE": np.float16, "INT8_Q_TYPE": np.int8, "UINT8_Q_TYPE": np.uint8,
    "INT16_Q_TYPE": np.int16, "INT32_Q_TYPE": np.int32, "INT32_I_TYPE": np.int32, "INT64_I_TYPE": np.int64,
    "INT8_TYPE": np.int8,
}  # fmt: skip
NOT_SHORT = ("QS_BUSY", "QS_PERM")  # of a refused activation: neither cores nor memory are what is missing
LOST = ("QS_NODEV", "QS_DEV_ERROR", "QS_TIMEDOUT", "QS_BADFD", "QS_PROTOCOL")


class WrongShape(SettingsError):
    """A program does not take what it is given."""


class NotLoaded(SettingsError):
    """The device does not load a program; with less on it, it may."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A buffer of a program. Shapes and dtypes are those that it was compiled for."""

    name: str
    index: int
    is_input: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int


@dataclass(frozen=True, slots=True)
class Buffer:
    """What the SDK is given, and the memory that it refers to, which it does not keep alive itself."""

    given: Any
    memory: Any


class Device:
    """One device, as the SDK opens it; its programs share a context and a queue. `lost`: nothing of it will end."""

    def __init__(self, sdk: Sdk, number: int) -> None:
        self.number, self.lost = number, False
        self.qaicrt, self.aicapi = sdk.modules()
        try:
            self.context = self.qaicrt.Context(self.qaicrt.QIDList([number]))
            self.queue = self.qaicrt.Queue(self.context, number)
        except SettingsError:
            raise
        except Exception as error:
            raise SettingsError(
                f"Device {number} cannot be opened ({error}); see `qaic-util -q`. If this user may not: {sdks.GROUP}."
            ) from None

    def free(self) -> tuple[int, int, int]:
        """Free cores, free bytes of memory, and all bytes. Raises SettingsError."""
        status, found = self.qaicrt.Util().getResourceInfo(self.number)
        sdks.check(self.qaicrt, status, f"Device {self.number} does not tell what is free on it")
        return int(found.nspFree), int(found.dramFree) << 20, int(found.dramTotal) << 20


class ProgramGroup(Protocol):
    """See `groups.py`."""

    def add(self, session: "Session") -> None: ...

    def remove(self, session: "Session") -> None: ...

    def enable(self) -> None: ...

    def enqueue(self, running: Any) -> Any: ...


class Session:
    """A program that is loaded on a device, which takes memory there until it is unloaded. Not thread-safe."""

    def __init__(
        self, device: Device, folder: Path, name: str, cores: int, group: "ProgramGroup | None" = None
    ) -> None:
        """`folder` holds programqpc.bin. Programs of a group are loaded and made resident by it. Raises SettingsError,
        in one sentence; NotLoaded if the device refuses it."""
        self.name, self.device, self.cores, self._group = name, device, cores, group
        self._rt = device.qaicrt
        self.qpc = self._opened(folder)
        self.bindings = {binding.name: binding for binding in self._bindings(self.qpc)}
        self.is_active = False
        self._idle: list[Started] = []  # execution objects, each with its output buffers
        self._running = 0
        self._dims = [(one.dtype.itemsize, list(one.shape)) for one in self._in_order()]
        self._program: Any = None
        if group is not None:
            group.add(self)
        else:
            self._load()

    def _load(self) -> None:
        properties = self._rt.QAicProgramProperties()
        if hasattr(properties, "dataPathTimeoutMs"):
            properties.dataPathTimeoutMs = TIMEOUT_MS
        else:  # SDKs before 1.20
            properties.SubmitRetryTimeoutMs = TIMEOUT_MS
        self._program = self._rt.Program(self.device.context, self.device.number, self.qpc, properties)
        status = self._program.load()
        if status != self._rt.QStatus.QS_SUCCESS:
            what = f"The program {self.name} cannot be loaded on device {self.device.number}"
            raise NotLoaded(sdks.explain(status, what))

    def attach(self, program: Any) -> None:
        """The program as its group has it."""
        self._program = program

    def detach(self) -> None:
        """The program is no longer in its group; execution objects end with it."""
        assert not self._running, f"{self.name} is still running"
        self._idle.clear()
        self._program = None

    def activate(self) -> None:
        """Makes it resident, which takes cores and memory. Raises CompileFailed if the device refuses, or DeviceSick if
        it is lost."""
        if self.is_active or self._group is not None:
            return
        status = self._program.activate()
        if status is not None and status != self._rt.QStatus.QS_SUCCESS:
            name = getattr(status, "name", "")
            free = "" if name in NOT_SHORT else self._what_is_free()
            what = f"The program {self.name} cannot be activated on device {self.device.number}{free}"
            lost = name in LOST
            raise (DeviceSick if lost else CompileFailed)(sdks.explain(status, what))
        self.is_active = True

    def deactivate(self) -> None:
        """Gives its cores and memory back. Nothing may be running."""
        if self.is_active:
            assert not self._running, f"{self.name} is still running"
            self._idle.clear()  # they belong to the activation
            status = self._program.deactivate()
            self.is_active = False
            if status is not None and not self.device.lost:
                self._check(status, "cannot be deactivated")

    def unload(self) -> None:
        """Gives its memory back, too: the SDK unloads a program that nobody holds."""
        if self._group is not None:
            self._group.remove(self)
        else:
            self.deactivate()
            self._program = None

    def check(self, graph: Graph) -> None:
        """Raises WrongShape unless the program's buffers are those of the graph."""
        for tensor in (*graph.inputs, *graph.outputs):
            found = self.bindings.get(tensor.name)
            if found is None or found.shape != tensor.shape:
                has = f"the shape {found.shape}, not {tensor.shape}" if found else "no such buffer"
                raise WrongShape(
                    f"The program {self.name} has {has} for {tensor.name}; it was compiled for another batch, size or"
                    " model: compile it again with `presswork ai100 compile`."
                )

    def buffer(self, name: str, values: Array) -> Buffer:
        """An input as the device takes it, to be used for any number of runs. Raises WrongShape."""
        wanted = self.bindings[name]
        if values.shape != wanted.shape:
            raise WrongShape(f"The program {self.name} takes {name} of the shape {wanted.shape}, not {values.shape}.")
        bytes_of = np.ascontiguousarray(values, wanted.dtype).reshape(-1).view(np.uint8)
        try:
            return Buffer(self._rt.QBuffer(bytes_of), bytes_of)
        except TypeError:  # bindings that take `bytes` alone
            copied = bytes_of.tobytes()
            return Buffer(self._rt.QBuffer(copied), copied)

    def submit(self, inputs: Mapping[str, Any]) -> "Run":
        """Starts a run. Inputs are arrays, or what `buffer` gave. Raises WrongShape or DeviceSick."""
        given = {name: self.buffer(name, one) if isinstance(one, np.ndarray) else one for name, one in inputs.items()}
        queue: Any = self.device.queue
        if self._group is not None:
            self._group.enable()
            queue = self._group
        running, outputs = self._idle.pop() if self._idle else self._another()
        buffers = [(given if one.is_input else outputs)[one.name].given for one in self._in_order()]
        self._check(running.setData(buffers, self._rt.BufferDimensionsVecRef(self._dims)), "did not take its inputs")
        self._check(queue.enqueue(running), "could not be started")
        self._running += 1
        return Run(self, (running, outputs), given)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """One run, start to end."""
        return self.submit(inputs).wait()

    def finish(self, started: "Started") -> dict[str, Array]:
        """Waits for a run and takes its outputs; of a device that is lost it waits for nothing."""
        self._running -= 1
        if self.device.lost:
            raise DeviceSick(f"Device {self.device.number} is lost.")
        running = started[0]
        self._check(running.waitForCompletion(), "failed")
        status, buffers = running.getData()
        self._check(status, "gave no outputs")
        self._idle.append(started)
        return {
            one.name: np.frombuffer(bytes(buffers[one.index]), one.dtype).reshape(one.shape)
            for one in self._in_order()
            if not one.is_input
        }

    def _check(self, status: Any, what: str) -> None:
        if status == self._rt.QStatus.QS_SUCCESS:
            return
        sentence = sdks.explain(status, f"The program {self.name} {what} on device {self.device.number}")
        if getattr(status, "name", "") == "QS_NOMEM":
            raise OutOfMemory(sentence)
        # No prompt is at fault: the runtime reports a wait that timed out as a plain error.
        self.device.lost = True
        raise DeviceSick(sentence)

    def _what_is_free(self) -> str:
        """The runtime's status for a refused activation does not tell what is short."""
        try:
            cores, memory, _ = self.device.free()
        except SettingsError:
            return ""
        return f", of which it takes {self.cores} cores and {cores} are free, with {memory >> 20} MiB of memory"

    def _another(self) -> "Started":
        running = self._rt.ExecObj(self.device.context, self._program)
        memory = {one.name: bytes(one.size) for one in self._in_order() if not one.is_input}
        return running, {name: Buffer(self._rt.QBuffer(held), held) for name, held in memory.items()}

    def _in_order(self) -> list[Binding]:
        return sorted(self.bindings.values(), key=lambda one: one.index)

    def _opened(self, folder: Path) -> Any:
        try:
            return self._rt.Qpc(str(folder))
        except Exception as error:
            raise SettingsError(
                f"The program {self.name} in {folder} cannot be opened ({error}); it is damaged or of another SDK:"
                " compile it again with `presswork ai100 compile`."
            ) from None

    def _bindings(self, qpc: Any) -> list[Binding]:
        status, data = qpc.getIoDescriptor()
        sdks.check(self._rt, status, f"The program {self.name} does not describe its buffers")
        described = self.device.aicapi.IoDesc()
        described.ParseFromString(bytes(data))
        dtypes = {getattr(self.device.aicapi, name): np.dtype(dtype) for name, dtype in DTYPES.items()}
        way_in = self.device.aicapi.BUFFER_IO_TYPE_INPUT
        return [
            Binding(
                one.name.rsplit("/", 1)[-1], one.index, one.dir == way_in, tuple(one.dims), dtypes[one.type], one.size
            )
            for one in described.selected_set.bindings
        ]


Started = tuple[Any, dict[str, Buffer]]
"""An execution object with its output buffers."""


class Run:
    """A run in flight. It keeps its inputs until it has ended, and its execution object no longer than that: with one
    of them alive, the runtime deactivates no program."""

    def __init__(self, session: Session, started: Started, given: Mapping[str, Any]) -> None:
        self._session, self._given = session, given
        self._started: Started | None = started
        self._found: dict[str, Array] | None = None
        self._error: Exception | None = None

    @property
    def ended(self) -> bool:
        return self._found is not None or self._error is not None

    def settle(self) -> None:
        """Waits until it has ended, well or not."""
        started, self._started = self._started, None
        if started is not None:
            try:
                self._found = self._session.finish(started)
            except Exception as error:
                self._error = error.with_traceback(None)

    def wait(self) -> dict[str, Array]:
        """Its outputs by name, arrays of the caller's own. Raises DeviceSick if the device is lost."""
        self.settle()
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found
