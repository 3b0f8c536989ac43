"""Which column of a table is which field of a request, and which are its metadata.

Spaces, hyphens and capitals in a name do not count. Metadata keep their names as they stand in the table.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from services.core.items.errors import Unreadable
from services.core.model import requests, suggestions

FIELDS = tuple(requests.ImageRequest.model_fields)
_NAMED = ("reproducibility_class",)  # a field only if named with --column: exports say so what became of an image
_BETWEEN = re.compile(r"[\s_-]+")


def plain(name: object) -> str:
    """The name without what does not count: negative_prompt for Negative Prompt."""
    return _BETWEEN.sub("_", str(name).strip().casefold())


def known(wanted: Mapping[str, str]) -> Callable[[str], bool]:
    """Tells whether a column of this name is used."""
    names = {plain(_name(field, wanted)) for field in (*FIELDS, *wanted)} - {""}
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
        name = _name(field, wanted)
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


def metadata(
    source: str,
    head: Sequence[str],
    wanted: Mapping[str, str],
    chosen: Sequence[str] | None,
    fields: Sequence[tuple[str, int]],
    unfit: Collection[int] = (),
) -> list[tuple[str, int]]:
    """Each name of metadata with the place of its column: those of --column, then `chosen`, by default all others that
    have a name, unless the table has a column for all metadata. `fields` are taken already; columns that are `unfit`
    hold no single values, and are taken only by name.

    Raises Unreadable if a named column is missing, is a field as well, or has a name that metadata cannot have.
    """
    found: list[tuple[str, int]] = []
    used = {at: field for field, at in fields}
    named = {name: column for name, column in wanted.items() if name not in FIELDS}
    for name, column in [*named.items(), *((column.strip(), column) for column in chosen or () if column)]:
        at = next(iter(_places(head, column)), None) if column else None
        if at is None and column:
            raise Unreadable(f"{source} has no column {column!r}; it has: {shown(head)}.")
        if at is not None and (field := used.get(at)):
            raise Unreadable(
                f"The column {head[at]!r} of {source} is the field {field} and cannot be metadata too; "
                f"--column {field}= would make it no field."
            )
        if at is not None:
            found.append((name, at))
    if chosen is None and "metadata" not in used.values():
        left = {at for _, at in found} | set(used) | set(unfit)
        not_wanted = {plain(name) for name, column in named.items() if not column}
        found += [
            (name.strip(), at)
            for at, name in enumerate(head)
            if at not in left and name.strip() and plain(name) not in not_wanted
        ]
    return _own_names(source, found)


def _own_names(source: str, found: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The second of two columns with one name is NAME_2."""
    taken: dict[str, int] = {}
    for name, at in found:
        if len(name) > requests.METADATA_NAME:
            raise Unreadable(
                f"{source} has a column {name[:40]!r}... of {len(name)} characters, and a name of metadata has at most "
                f"{requests.METADATA_NAME}; name it with --column SHORT=NAME, or choose columns with --metadata."
            )
        own, number = name, 1
        while own in taken:
            number += 1
            own = f"{name[: requests.METADATA_NAME - 4]}_{number}"
        taken[own] = at
    return list(taken.items())


def remark(source: str, head: Sequence[str], fields: Collection[int], kept: Sequence[tuple[str, int]]) -> str:
    """Which columns are metadata, which are ignored, and what would use one that was meant. Empty if all are
    fields."""
    places = {at for _, at in kept}
    others = [name.strip() for at, name in enumerate(head) if at not in fields and at not in places and name.strip()]
    names = [name for name, _ in kept]
    said = [f"columns of {source} that are no fields become metadata: {', '.join(names)}"] if names else []
    if others:
        said.append(f"{'ignored' if names else f'columns of {source} that are not used'}: {', '.join(others)}")
    free = [field for field in FIELDS if field not in {plain(head[at]) for at in fields}]
    meant = [
        (name, field)
        for name in [*names, *others]
        if plain(name) not in FIELDS and (field := suggestions.meant(name, free))
    ]
    hint = [f"--column {field}={name} would use {name} as a field" for name, field in meant]
    return "; ".join([*said, *hint])


def _name(field: str, wanted: Mapping[str, str]) -> str:
    """The name of the field's column; "" for none."""
    return wanted.get(field, "" if field in _NAMED else field)


def _places(head: Sequence[str], name: str) -> list[int]:
    exact = [at for at, column in enumerate(head) if column == name]
    return exact or [at for at, column in enumerate(head) if plain(column) == plain(name)]


def shown(head: Sequence[str]) -> str:
    return ", ".join(name.strip() for name in head if name.strip()) or "none"
