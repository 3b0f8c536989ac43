"""Whether this machine has the devices that workers are to be started on, by the files of their drivers."""

import re
from pathlib import Path

from services.core.model import devices
from services.core.model.errors import SettingsError

FILES = {"cuda": (Path("/dev"), r"nvidia\d+"), "qaic": (Path("/dev/accel"), r"accel\d+")}
ELSEWHERE = Path("/dev/dxg")  # below Windows GPUs have no file each


def check(wanted: tuple[str, ...], pipeline: str, *, is_alone: bool) -> None:
    """Raises SettingsError: the pipeline does not run on these devices, or one of them is not here. `is_alone`: they go
    with no other option that says how many workers there are."""
    if not wanted:
        return
    if not is_alone:
        raise SettingsError("--devices runs one worker on each device: leave --workers and a second --model out.")
    devices.check(wanted, pipeline)
    kind = wanted[0].partition(":")[0]
    if kind not in FILES or ELSEWHERE.exists():
        return
    folder, pattern = FILES[kind]
    here = sum(re.fullmatch(pattern, path.name) is not None for path in folder.glob("*"))
    missing = [name for name in wanted if int(name.partition(":")[2]) >= here]
    if missing:
        has = f"has {kind}:0 to {kind}:{here - 1}" if here > 1 else f"has {kind}:0 alone" if here else "has none"
        raise SettingsError(f"--devices names {missing[0]}, and this machine {has}.")
