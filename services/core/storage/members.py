"""Keys of images that lie in a shard: many images in one object, a tar. Such a key names the object, and where in it
the image's bytes begin and how many they are, as `KEY.tar#BEGIN+SIZE`.

The store reads and copies a member as if it were an object. A program that does not know such keys finds no object
there: it shows nothing rather than other bytes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_KEY = re.compile(r"(.+\.tar)#([0-9]{1,15})\+([0-9]{1,10})", re.DOTALL)
_GAP = 64 << 10  # bytes between two members that are rather read than asked past
_MOST = 8 << 20  # bytes read at once


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of an object: `size` of them from `begin` on."""

    object_key: str
    begin: int
    size: int

    @property
    def key(self) -> str:
        return f"{self.object_key}#{self.begin}+{self.size}"

    @property
    def last(self) -> int:
        return self.begin + self.size - 1


@dataclass(slots=True)
class Span:
    """Bytes that are read at once, under the key `key`. `parts`: of each wanted key its number, and where its bytes
    begin and end in what is read; None: all of it."""

    key: str
    parts: list[tuple[int, slice | None]] = field(default_factory=list)


def place(key: str) -> Place | None:
    """None: it is the key of an object."""
    found = _KEY.fullmatch(key) if "#" in key else None
    return Place(found[1], int(found[2]), int(found[3])) if found else None


def object_of(key: str) -> str:
    """The key of the object that holds the bytes."""
    found = place(key)
    return key if found is None else found.object_key


def objects_of(keys: Iterable[str]) -> list[str]:
    """The objects that hold the bytes of these keys, each once, in the order of the keys."""
    return list(dict.fromkeys(map(object_of, keys)))


def spans(keys: Sequence[str]) -> list[Span]:
    """The reads by which all keys are read: of each shard one, but for members far apart or large."""
    found: list[Span] = []
    shards: dict[str, list[tuple[int, Place]]] = {}
    for number, key in enumerate(keys):
        if (inside := place(key)) is None:
            found.append(Span(key, [(number, None)]))
        else:
            shards.setdefault(inside.object_key, []).append((number, inside))
    for members in shards.values():
        members.sort(key=lambda one: one[1].begin)
        run = [members[0]]
        for member in members[1:]:
            if member[1].begin - run[-1][1].last > _GAP or member[1].last - run[0][1].begin >= _MOST:
                found.append(_span(run))
                run = []
            run.append(member)
        found.append(_span(run))
    return found


def _span(run: list[tuple[int, Place]]) -> Span:
    """Of members in order."""
    begin, end = run[0][1].begin, max(one.last for _, one in run) + 1
    parts = [(number, slice(one.begin - begin, one.begin - begin + one.size)) for number, one in run]
    return Span(Place(run[0][1].object_key, begin, end - begin).key, list(parts))
