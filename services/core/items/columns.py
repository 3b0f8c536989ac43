"""Which column of a table is which field of a request. Spaces, hyphens and capitals in a name do not count."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from services.core.items.errors import Unreadable
from services.core.model import requests, suggestions

FIELDS = tuple(requests.ImageRequest.model_fields)
_BETWEEN = re.compile(r"[\s_-]+")


def plain(name: object) -> str:
    """The name without what does not count: negative_prompt for Negative Prompt."""
    return _BETWEEN.sub("_", str(name).strip().casefold())


def known(wanted: Mapping[str, str]) -> Callable[[str], bool]:
    """Tells whether a column of this name is used."""
    names = {plain(wanted.get(field, field)) for field in FIELDS} - {""}
    return lambda name: plain(name) in names


def prompts(wanted: Mapping[str, str]) -> Callable[[str], bool]:
    """Tells whether a column of this name holds the prompts."""
    name = plain(wanted.get("prompt", "prompt"))
    return lambda given: plain(given) == name


def taken(source: str, head: Sequence[str], wanted: Mapping[str, str]) -> list[tuple[str, int]]:
    """Each field with the place of its column: the one given with --column, else the one with the field's name.

    `--column FIELD=` says that no column is this field.
    Raises Unreadable if a given column or the prompt is missing, or two columns have the name.
    """
    found = []
    for field in FIELDS:
        name = wanted.get(field, field)
        places = _places(head, name) if name else []
        if len(places) > 1:
            named = " and ".join(repr(head[at]) for at in places[:2])
            raise Unreadable(f"{source} has two columns for {field}: {named}; name one with --column {field}=NAME.")
        if not places and field in wanted and name:
            raise Unreadable(f"{source} has no column {name!r}; it has: {shown(head)}.")
        found += [(field, at) for at in places]
    if not any(field == "prompt" for field, _ in found):
        near = next((name for name in head if suggestions.meant(name, FIELDS) == "prompt"), None)
        hint = f"did you mean --column prompt={near}?" if near else "name it with --column prompt=NAME;"
        raise Unreadable(f"{source} has no column 'prompt'; {hint} It has: {shown(head)}.")
    return found


def unused(source: str, head: Sequence[str], used: Collection[int]) -> str:
    """Which columns are ignored, and what would use one that was meant. Empty if there are none."""
    names = [name.strip() for at, name in enumerate(head) if at not in used and name.strip()]
    if not names:
        return ""
    free = [field for field in FIELDS if field not in {plain(head[at]) for at in used}]
    meant = [(name, field) for name in names if plain(name) not in FIELDS and (field := suggestions.meant(name, free))]
    hint = "".join(f"; --column {field}={name} would use {name}" for name, field in meant)
    return f"columns of {source} that are not fields are ignored: {', '.join(names)}{hint}"


def _places(head: Sequence[str], name: str) -> list[int]:
    exact = [at for at, column in enumerate(head) if column == name]
    return exact or [at for at, column in enumerate(head) if plain(column) == plain(name)]


def shown(head: Sequence[str]) -> str:
    return ", ".join(name.strip() for name in head if name.strip()) or "none"
