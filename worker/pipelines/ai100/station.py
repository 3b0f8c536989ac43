"""One device at work: its programs, loaded when first used, and whose turn it is on which cores."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from services.core.model.errors import SettingsError
from worker.pipelines.ai100.cards import TEXT_ENCODER, UNET, VAE_ENCODER
from worker.pipelines.ai100.compiling import PROGRAM
from worker.pipelines.ai100.groups import Group
from worker.pipelines.ai100.placement import Placement
from worker.pipelines.ai100.programs import Programs
from worker.pipelines.ai100.session import Device, NotLoaded, Run, Session

Key = tuple[str, tuple[int, int], int]  # network, size, chunks
ANY_SIZE = (0, 0)  # of the text encoder: it is the same program for all of them


class Station:
    """A device with a placement. Programs of one slot take turns; the encoder of input pictures shares the cores of the
    text encoder. Not thread-safe."""

    def __init__(self, device: Device, placement: Placement, programs: Programs, *, data_path: bool = False) -> None:
        """With `data_path`, the device switches by itself between the programs of a slot. Raises SettingsError, in one
        sentence, if the device has too few cores free."""
        self.device, self.placement, self._programs = device, placement, programs
        free, _, _ = device.free()
        if free < placement.cores:
            raise SettingsError(
                f"Device {device.number} has {free} cores free and the programs take {placement.cores} ({placement});"
                " stop what else runs on it, name another device in PRESSWORK_DEVICE, or give them fewer cores by"
                " PRESSWORK_AI100_PLACEMENT."
            )
        self._sessions: dict[Key, Session] = {}  # the one that was used last at the end
        self._turns: dict[str, Turns] = {
            slot.networks[0]: Together(Group(device, f"presswork {slot.networks[0]}"))
            if data_path and len(slot.networks) > 1
            else Turns()
            for slot in placement.slots
        }

    def has(self, network: str) -> bool:
        return _home(network) in self.placement.networks

    def cores(self, network: str) -> int:
        return self.placement.slot_of(_home(network)).cores

    def session(self, network: str, size: tuple[int, int], chunks: int = 1) -> Session:
        """The loaded program; compiling a missing one takes minutes. Raises SettingsError or CompileFailed."""
        key = network, ANY_SIZE if network == TEXT_ENCODER else size, chunks
        session = self._sessions.pop(key, None)
        if session is None:
            session = self._load(network, size, chunks)
            session.check(self._programs.graph(network, size, chunks))
        self._sessions[key] = session
        return session

    def _load(self, network: str, size: tuple[int, int], chunks: int) -> Session:
        """Where the device's memory is short, programs of other sizes make room."""
        cores = self.cores(network)
        folder = self._programs.find(network, size, cores, chunks)
        while True:
            try:
                self._check_memory(network, folder)
                turns = self.turns(network)
                if turns.group is not None:
                    turns.settle()  # it is made anew
                return Session(self.device, folder, network, cores, turns.group)
            except NotLoaded:
                if not self._unload_another(network, size):
                    raise

    def _unload_another(self, network: str, size: tuple[int, int]) -> bool:
        """Unloads what has not been used for longest of what the size does not need beside that network. Of U-Nets,
        it needs one, for prompts of one length."""
        for key in self._sessions:
            if key[1] not in (size, ANY_SIZE) or key[0] == network == UNET:
                self._unload(key)
                return True
        return False

    def _unload(self, key: Key) -> None:
        session = self._sessions.pop(key)
        for turns in self._turns.values():
            turns.drop(session)
        session.unload()

    def submit(self, session: Session, inputs: Mapping[str, Any]) -> Run:
        """Starts a run, after the programs whose turn it was have ended theirs."""
        return self.turns_of(session).submit(session, inputs)

    def turns_of(self, session: Session) -> "Turns":
        return self.turns(session.name)

    def turns(self, network: str) -> "Turns":
        return self._turns[self.placement.slot_of(_home(network)).networks[0]]

    def forget(self, size: tuple[int, int]) -> None:
        """Unloads the programs of a size alone."""
        for key in [key for key in self._sessions if key[1] == size]:
            self._unload(key)

    def release(self) -> None:
        """Gives all cores back, after what runs has ended."""
        for turns in self._turns.values():
            turns.close()

    def close(self) -> None:
        self.release()
        self._sessions.clear()

    def _check_memory(self, network: str, folder: Path) -> None:
        _, free, total = self.device.free()
        needed = (folder / PROGRAM).stat().st_size
        if needed > free:
            raise NotLoaded(
                f"Device {self.device.number} has {free >> 20} of {total >> 20} MiB free and the program {network}"
                f" takes {-(-needed >> 20)}; stop what else runs on it, or lower PRESSWORK_AI100_PROGRAM_BATCH."
            )


class Turns:
    """The programs that share some cores: one of them is active."""

    def __init__(self, group: Group | None = None) -> None:
        self.group = group
        self._active: Session | None = None
        self._runs: list[Run] = []

    def submit(self, session: Session, inputs: Mapping[str, Any]) -> Run:
        if not self.has(session):
            self.close()
            self.begin(session)
        run = session.submit(inputs)
        self._runs = [one for one in self._runs if not one.ended] + [run]
        return run

    def has(self, session: Session) -> bool:
        return session is self._active

    def is_behind(self, run: Run) -> bool:
        """Whether something was asked for after that run, which then ends before the cores are free again."""
        return not self._runs or self._runs[-1] is not run

    def begin(self, session: Session) -> None:
        """Makes a program resident, which blocks the thread. Nothing else may be."""
        assert self._active is None
        session.activate()
        self._active = session

    def drop(self, session: Session) -> None:
        if session is self._active:
            self.close()

    def close(self) -> None:
        """Waits for what runs, and gives the cores back."""
        self.settle()
        if self._active is not None:
            self._active.deactivate()
            self._active = None

    def settle(self) -> None:
        """Waits for what runs."""
        for run in self._runs:
            run.settle()
        self._runs.clear()


class Together(Turns):
    """The same, where the device switches to the program of a run by itself: none has to be made resident."""

    def has(self, session: Session) -> bool:  # noqa: ARG002  all of them are there
        return True

    def drop(self, session: Session) -> None:  # noqa: ARG002  its group is made anew without it
        self.settle()

    def close(self) -> None:
        self.settle()
        assert self.group is not None
        self.group.close()


def switch_all(wanted: Iterable[tuple[Station, Session]]) -> None:
    """Makes each program resident, on all devices at once: one after the other, the last device would wait for the
    switches of all the others. Raises as `submit` does."""
    due = [(station.turns_of(session), session) for station, session in wanted]
    due = [(turns, session) for turns, session in due if not turns.has(session)]
    for turns, _ in due:
        turns.close()
    if len(due) < 2:
        for turns, session in due:
            turns.begin(session)
        return
    with ThreadPoolExecutor(len(due), "switch") as pool:
        begun = [pool.submit(turns.begin, session) for turns, session in due]
    for one in begun:
        one.result()


def _home(network: str) -> str:
    return TEXT_ENCODER if network == VAE_ENCODER else network
