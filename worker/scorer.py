"""The contract of a scorer, and opening the ones that are chosen.

A scorer looks at one rendered picture and gives it a number. Those that ship and need no weights run in the storing
stage's own threads; all others run in a process of their own (`scoring_process.py`), which may hang or die.
"""

import importlib
import math
import numbers
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import PressworkError, SettingsError
from services.core.model.scores import GROUP, PHASH, SHIPPED, USUAL

Scorer = Callable[[NDArray[np.uint8], str], Any]
"""Gets pixels of shape (height, width, 3), RGB, which it must not change, and the prompt. Gives a finite number."""


class Rubbish(Exception):
    """A scorer gave something that is no finite number."""


def check(names: Sequence[str]) -> None:
    """Raises SettingsError unless each name is a scorer that ships or that an installed distribution brings."""
    brought = {entry.name for entry in metadata.entry_points(group=GROUP)}
    for name in names:
        if name not in SHIPPED and name not in brought:
            known = ", ".join([*SHIPPED, *sorted(brought - SHIPPED.keys())])
            raise SettingsError(
                f"PRESSWORK_SCORERS names {name!r}, and no such scorer is installed; there are {known}."
            )


def is_own(name: str) -> bool:
    """Whether it ships, takes no time to speak of and needs nothing."""
    return name in USUAL


def open_scorer(name: str, **options: Any) -> Scorer:
    """Imports the scorer and makes it ready; `options` are for those that ship."""
    if name in SHIPPED:
        made: Scorer = importlib.import_module(SHIPPED[name]).open_scorer(**options)
        return made
    entry = next(iter(metadata.entry_points(group=GROUP, name=name)))
    found: Scorer = entry.load()()
    return found


def value(name: str, given: Any) -> float | int:
    """The number that a scorer gave, with six digits; of `phash` its 64 bits. Raises Rubbish."""
    if name == PHASH:
        if not isinstance(given, numbers.Integral) or not 0 <= int(given) < 2**64:
            raise Rubbish(f"it gave {_shown(given)}, which is no whole number of 64 bits")
        return int(given)
    if not hasattr(given, "__float__"):
        raise Rubbish(f"it gave {_shown(given)}, which is no number")
    number = float(given)
    if not math.isfinite(number):
        raise Rubbish(f"it gave {number}, which is not finite")
    return float(f"{number:.6g}")


def reason(error: BaseException) -> str:
    """Why a scorer failed, in one line of at most 300 characters."""
    is_ours = isinstance(error, Rubbish | PressworkError)
    words = str(error) if is_ours else f"{type(error).__name__}: {error}"
    return "".join(filter(str.isprintable, " ".join(words.split())))[:300]


def _shown(given: Any) -> str:
    try:
        return repr(given)[:60]
    except Exception:
        return f"a {type(given).__name__}"
