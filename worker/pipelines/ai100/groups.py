"""Programs that take turns on the same cores, and which the device itself switches between: data-path switching.

As the published recipe does it: the programs of a slot are added to a group, which is enabled once; a run that is
enqueued through it brings its program. Which calls of the SDK these are: the stand-in's SURFACE.md.
"""

from typing import Any

from worker.pipelines.ai100 import sdk as sdks
from worker.pipelines.ai100.session import Device, NotLoaded, Session


class Group:
    """The programs of one slot of one device. Not thread-safe."""

    def __init__(self, device: Device, name: str) -> None:
        self._device, self._name = device, name
        self._sessions: list[Session] = []
        self._made: Any = None

    def add(self, session: Session) -> None:
        """Programs join before a group is enabled, so it is made anew. Nothing of it may be running. Raises NotLoaded,
        and leaves the group without the program."""
        try:
            self._make([*self._sessions, session])
        except NotLoaded:
            self._make(self._sessions)
            raise

    def remove(self, session: Session) -> None:
        """Gives its memory back. Nothing of the group may be running."""
        self._make([one for one in self._sessions if one is not session])

    def enable(self) -> None:
        """Loads its programs and takes the cores, unless they are there. Raises NotLoaded."""
        if self._made is None:
            self._make(self._sessions)

    def enqueue(self, running: Any) -> Any:
        """Starts a run, after a switch to its program if another one was there. The status."""
        return self._made.enqueue(running)

    def close(self) -> None:
        """Gives the cores and the memory of all its programs back, until the next run. Nothing of it may be running."""
        for session in self._sessions:
            session.detach()
        made, self._made = self._made, None
        if made is not None:
            made.disable(False, 0)

    def _make(self, sessions: list[Session]) -> None:
        self.close()
        self._sessions = list(sessions)
        if not sessions:
            return
        rt = self._device.qaicrt
        properties = rt.QAicProgramGroupProperties()
        properties.protocolSelect = rt.QAicProgramGroupPropertiesProtocol.QAIC_PROGRAM_GROUP_PROTOCOL_DATA_PATH
        made = rt.ProgramGroup(self._device.context, self._device.number, self._name, properties)
        for session in sessions:
            status, program = made.addProgram(session.qpc)
            self._check(status, f"The program {session.name} cannot join its group")
            session.attach(program)
        self._made = made
        self._check(made.enable(), "A group of programs cannot be enabled")

    def _check(self, status: Any, what: str) -> None:
        if status is not None and status != self._device.qaicrt.QStatus.QS_SUCCESS:
            self.close()
            raise NotLoaded(sdks.explain(status, f"{what} on device {self._device.number}"))
