"""The order in which one reader gives the images of its shards, and how it goes on in the middle of it.

The order follows from the shards' sizes and a seed alone. So after a restart the part that was read is counted off
without fetching it; only shards that hold images which are still to come are fetched.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from presswork_client.transport import ClientError


class _Sized(Protocol):
    @property
    def images(self) -> int: ...


Shard = TypeVar("Shard", bound=_Sized)
Item = TypeVar("Item")
_Position = tuple[int, int]  # which shard, and which image of it


class Reading(Generic[Shard, Item]):
    """Reader `place` of `readers` in one epoch: an iterator. `count`: how many images it has given, those that were
    skipped included."""

    def __init__(
        self,
        shards: Sequence[Shard],
        images: Callable[[Shard], Iterator[Item]],
        among: int,
        seed: str,
        place: int,
        told: dict[str, Any],
    ) -> None:
        """`among`: how many images are mixed. `told`: what a state must agree with."""
        self._shards, self._images, self._among, self._seed = shards, images, among, seed
        self.place, self._told, self.count = place, told, 0
        self._found: Iterator[Item] | None = None

    def __iter__(self) -> "Reading[Shard, Item]":
        return self

    def __next__(self) -> Item:
        if self._found is None:
            self._found = self._from(self.count)
        found = next(self._found)
        self.count += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        return self._told | {"read": {str(self.place): self.count}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken. Call it before the first image. Raises ClientError."""
        self.count, self._found = read_by(state, self._told, [self.place])[self.place], None

    def _from(self, skip: int) -> Iterator[Item]:
        mixer: _Mixer[Any] = _Mixer(self._among, random.Random(self._seed))
        given = entered = 0
        positions = ((at, index) for at, shard in enumerate(self._shards) for index in range(shard.images))
        while given < skip:
            position = next(positions, None)
            if position is None:
                rest = mixer.rest()[skip - given :]
                held = self._fetched(rest)
                yield from (held[position] for position in rest)
                return
            entered += 1
            given += mixer.push(position) is not None
        held = self._fetched(mixer.held)
        mixer.held = [held[position] for position in mixer.held]
        for image in self._after(entered):
            if (found := mixer.push(image)) is not None:
                yield found
        yield from mixer.rest()

    def _fetched(self, positions: Sequence[_Position]) -> dict[_Position, Item]:
        """The images at these positions: each shard that holds some is fetched, once."""
        found: dict[_Position, Item] = {}
        for at in sorted({at for at, _ in positions}):
            wanted = {index for one, index in positions if one == at}
            images = islice(self._images(self._shards[at]), max(wanted) + 1)
            found |= {(at, index): image for index, image in enumerate(images) if index in wanted}
        return found

    def _after(self, entered: int) -> Iterator[Item]:
        for shard in self._shards:
            if entered >= shard.images:
                entered -= shard.images
                continue
            yield from islice(self._images(shard), entered, None)
            entered = 0


def read_by(state: dict[str, Any], told: dict[str, Any], places: Sequence[int]) -> dict[int, int]:
    """How many images each of these readers had given. Raises ClientError if the state is of something else."""
    try:
        differs = [name for name, value in told.items() if state[name] != value]
        read = {int(place): int(count) for place, count in state["read"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ClientError(0, "other_state", "This is no state of a stream of images.") from None
    if differs:
        words = ", ".join(f"{name} {state[name]!r} instead of {told[name]!r}" for name in differs)
        raise ClientError(0, "other_state", f"The state is of another stream: it has {words}.")
    if missing := [place for place in places if place not in read]:
        message = f"The state is of another rank: it lacks reader {missing[0]}. Each rank saves and loads its own."
        raise ClientError(0, "other_state", message)
    return {place: read[place] for place in places}


class _Mixer(Generic[Item]):
    """Holds `among` items: each that comes in takes the place of one of them, drawn at random, which goes out."""

    def __init__(self, among: int, order: random.Random) -> None:
        self._among, self._order = among, order
        self.held: list[Item] = []

    def push(self, item: Item) -> Item | None:
        if len(self.held) < self._among:
            self.held.append(item)
            return None
        if not self.held:
            return item
        place = self._order.randrange(len(self.held))
        found, self.held[place] = self.held[place], item
        return found

    def rest(self) -> list[Item]:
        self._order.shuffle(self.held)
        return self.held
