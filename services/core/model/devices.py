"""Several devices in one word, as `presswork up --devices` and PRESSWORK_DEVICES take them: "cuda:0-3", "cuda:0,2"."""

import re

from services.core.model.errors import SettingsError

MOST = 64
PIPELINES = {"cuda": ("torch", "onnx"), "rocm": ("onnx",), "qaic": ("ai100",), "simulated": ("simulated",)}  # of a kind
_WORD = re.compile(r"([a-z]+):([0-9]{1,4}(?:-[0-9]{1,4})?(?:,[0-9]{1,4}(?:-[0-9]{1,4})?)*)")


def parse(text: str) -> tuple[str, ...]:
    """Each device by its own name, "cuda:0" and so on, as one worker takes it; () for an empty text. Raises
    ValueError: the rest of a sentence that begins with what was found."""
    if not text:
        return ()
    found = _WORD.fullmatch(text)
    if found is None or found[1] not in PIPELINES:
        raise ValueError(f"it must name devices of one kind ({', '.join(PIPELINES)}), as cuda:0-3 and cuda:0,2 do")
    numbers: list[int] = []
    for part in found[2].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
        if int(last or first) < int(first):
            raise ValueError(f"{part} ends before it begins")
    if len(numbers) > MOST:
        raise ValueError(f"it must name at most {MOST} devices")
    if len(set(numbers)) < len(numbers):
        raise ValueError("it must name each device once")
    return tuple(f"{found[1]}:{number}" for number in numbers)


def check(devices: tuple[str, ...], pipeline: str) -> None:
    """Raises SettingsError: no worker of that pipeline runs on such a device."""
    if devices and pipeline not in (able := PIPELINES[devices[0].partition(":")[0]]):
        raise SettingsError(
            f"The pipeline {pipeline} does not run on {devices[0]}; {' and '.join(able)} "
            f"{'does' if len(able) == 1 else 'do'}."
        )
