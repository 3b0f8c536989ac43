"""Filters of images by their metadata, such as `split=val` or `lang!=de`: what one means, everywhere.

A text is compared as it is, a number as a number however it is written, true and false as JSON has them; an image
without the name has the empty text. Of several values of one name, one must fit; of several names, all.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from services.core.model import metadata_types
from services.core.model.errors import PressworkError
from services.core.model.metadata_types import PREFIX

MOST = 16
_CONDITION = re.compile(r"([^=!\0]{1,64})(!?=)([^\0]{0,512})", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_COMMA = re.compile(r"(?<!\\),")


class NotUnderstood(PressworkError):
    """A filter of metadata that says nothing."""


@dataclass(frozen=True, slots=True)
class Condition:
    name: str
    value: str
    negated: bool = False

    @property
    def number(self) -> str:
        """The text of the number that the value is, as `metadata_types` writes it; the value itself if it is none."""
        return metadata_types.plain(Decimal(self.value)) if _NUMBER.fullmatch(self.value) else self.value

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
        value = (metadata or {}).get(one.name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_equal = metadata_types.text_of(value) == (one.number if is_number else one.value)
        key = (one.name, one.negated)
        fitting[key] = fitting.get(key, False) or is_equal
    return all(is_equal != negated for (_, negated), is_equal in fitting.items())
