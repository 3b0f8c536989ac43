"""Which GPU this process sees. A worker on cuda:3 hides the others and sees it as cuda:0.

Compilers' caches hold the number of the device, so workers of one host could not share them otherwise; and a process
takes no memory of a device that it does not see. Must run before torch is imported.
"""

import os
import re

from services.core.model.errors import SettingsError

VARIABLE = "CUDA_VISIBLE_DEVICES"
_NUMBERED = re.compile(r"cuda:([1-9][0-9]*)")
_shown: dict[str, str] = {}  # the device's name here, and the one that people know it by


def show_only(device: str) -> str:
    """Hides all GPUs but that one, and returns its name in this process. Other devices and cuda:0 stay as they are."""
    found = _NUMBERED.fullmatch(device)
    if found is None:
        return device
    number, given = int(found[1]), os.environ.get(VARIABLE)
    seen = given.split(",") if given else None
    if seen is not None and number >= len(seen):
        raise SettingsError(f"PRESSWORK_DEVICE is {device!r}, but {VARIABLE} is {given!r}, of {len(seen)} devices.")
    os.environ[VARIABLE] = str(number) if seen is None else seen[number].strip()
    _shown["cuda:0"] = device
    return "cuda:0"


def known_as(device: str) -> str:
    """The name that people know a device of this process by."""
    return _shown.get(device, device)
