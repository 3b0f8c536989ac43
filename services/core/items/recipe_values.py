"""The values of a recipe's names: of a list, the command line, or a file with one a line. 3::red has the weight 3."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.core.items import cells
from services.core.items.errors import Unreadable, WrongOption

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_WEIGHTED = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)::(.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one name. Without weights each is as likely as the others."""

    values: tuple[str | int | float, ...]
    weights: tuple[float, ...] | None = None

    def as_json(self) -> Any:
        if self.weights is None:
            return list(self.values)
        return {"values": list(self.values), "weights": list(self.weights)}


def of_recipe(name: str, given: Any, file: Callable[[str], str]) -> Values:
    """The values in a recipe: a list, one with weights, or @ and a file's name. Raises WrongOption."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WrongOption(f"{name!r} cannot be a name in a template: 1 to 64 letters, digits and _.")
    weights = None
    if isinstance(given, str) and given.startswith("@"):
        return of_lines(name, file(given[1:]))
    if isinstance(given, dict) and set(given) <= {"values", "weights"}:
        given, weights = given.get("values"), given.get("weights")
    if not isinstance(given, list) or not given or not all(map(_is_value, given)):
        raise WrongOption(f'{name} must be a list of texts or numbers, {{"values", "weights"}}, or "@FILE".')
    if weights is None:
        return Values(tuple(given))
    good = isinstance(weights, list) and len(weights) == len(given) and all(map(_is_weight, weights))
    if not good or not any(weights):
        raise WrongOption(f"{name} must have a weight for each value: numbers from 0, not all of them 0.")
    return Values(tuple(given), tuple(map(float, weights)))


def of_words(name: str, text: str, words: Sequence[object], file: Callable[[str], str]) -> Values:
    """The values of `--vary NAME=A,B` (as `words`) or `--vary NAME=@FILE` (`text`). A word 3::red has the weight 3."""
    if text.startswith("@"):
        return of_lines(name, file(text[1:]))
    return _weighted(name, words)


def of_lines(name: str, text: str) -> Values:
    """The values of a file: one a line, 3::red with a weight; empty lines and lines with # do not count. Raises
    Unreadable if there is none."""
    lines = [line.strip() for line in text.splitlines()]
    given = [line for line in lines if line and not line.startswith("#")]
    if not given:
        raise Unreadable(f"The file of {name} holds no values.")
    return _weighted(name, given)


def _weighted(name: str, words: Sequence[object]) -> Values:
    values: dict[str | int | float, float] = {}
    has_weights = False
    for word in words:
        found = _WEIGHTED.fullmatch(word) if isinstance(word, str) else None
        has_weights |= found is not None
        value = word if found is None else cells.parsed(name, found[2].strip())
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise WrongOption(f"{name} has the value {word!r}; it must be text or a number.")
        values[value] = values.get(value, 0.0) + (1.0 if found is None else float(found[1]))
    if has_weights and not any(values.values()):
        raise WrongOption(f"The weights of {name} are all 0.")
    return Values(tuple(values), tuple(values.values()) if has_weights else None)


def _is_value(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
