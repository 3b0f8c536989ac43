"""Reproducibility classes: their syntax. Within a class the same spec gives the same file, byte for byte."""

import re
from typing import NamedTuple

LIMIT = 400  # characters
_PART = r"[^/\u0000-\u001f\u007f-\u009f]+"
PATTERN = rf"{_PART}/{_PART}/{_PART}/{_PART}(?:/{_PART})*/[1-9][0-9]{{0,4}}"
_CLASS = re.compile(rf"({_PART})/({_PART})/({_PART})/({_PART}(?:/{_PART})*)/([1-9][0-9]{{0,4}})")
_SECOND_TRY = "-decoder"


class Parts(NamedTuple):
    """What a class is made of. Only a device kind may hold a slash."""

    revision: str
    backend: str
    precision: str
    device_kind: str
    batch_size: int

    @property
    def is_of_single_images(self) -> bool:
        """Whether only images whose decoder was tried again are of this class, which no worker can be asked for."""
        return self.precision.endswith(_SECOND_TRY)


def name(parts: Parts) -> str:
    return "/".join(map(str, parts))


def parse(text: str) -> Parts | None:
    """None: it is no class."""
    found = _CLASS.fullmatch(text)
    if found is None:
        return None
    return Parts(found[1], found[2], found[3], found[4], int(found[5]))


def second_try(precision: str, decoded_in: str) -> str:
    """The precision of a picture that was decoded once more, in a wider one."""
    return f"{precision}+{decoded_in}{_SECOND_TRY}"
