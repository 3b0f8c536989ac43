"""Filters of images by their metadata, such as `split=val` or `lang!=de`: what one means, everywhere.

A value is compared as the text that it is, or that JSON has for it; an image without the name has the empty text. Of
several values of one name, one must fit; of several names, all.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.core.model.errors import PressworkError
from services.core.model.metadata_types import PREFIX

MOST = 16
_CONDITION = re.compile(r"([^=!\0]{1,64})(!?=)([^\0]{0,512})", re.DOTALL)
_COMMA = re.compile(r"(?<!\\),")


class NotUnderstood(PressworkError):
    """A filter of metadata that says nothing."""


@dataclass(frozen=True, slots=True)
class Condition:
    name: str
    value: str
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.name}{'!=' if self.negated else '='}{self.value}"


def conditions(texts: Iterable[str]) -> tuple[Condition, ...]:
    """What the texts ask for. Raises NotUnderstood with the one that says nothing."""
    found = []
    for text in texts:
        match = _CONDITION.fullmatch(text.removeprefix(PREFIX))
        if match is None or not match[1].strip():
            raise NotUnderstood(f"{text[:60]!r} is no filter of metadata; write NAME=VALUE or NAME!=VALUE.")
        found.append(Condition(match[1].strip(), match[3], match[2] == "!="))
    if len(found) > MOST:
        raise NotUnderstood(f"There are {len(found)} filters of metadata; at most {MOST} go together.")
    return tuple(dict.fromkeys(found))


def divided(text: str) -> list[str]:
    r"""Filters that stand in one text, with commas; a comma of a value is written as \, ."""
    return [one.replace("\\,", ",") for one in _COMMA.split(text)]


def holds(metadata: Mapping[str, Any] | None, wished: Iterable[Condition]) -> bool:
    """Whether an image with this metadata fits, as `db.columns.fits_metadata` asks in SQL."""
    fitting: dict[tuple[str, bool], bool] = {}
    for one in wished:
        is_equal = as_text((metadata or {}).get(one.name)) == one.value
        key = (one.name, one.negated)
        fitting[key] = fitting.get(key, False) or is_equal
    return all(is_equal != negated for (_, negated), is_equal in fitting.items())


def as_text(value: Any) -> str:
    """A value as it is compared."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
