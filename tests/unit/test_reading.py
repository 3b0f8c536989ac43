"""In which order a reader gives images, and what it fetches when it goes on in the middle."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from presswork_client import ClientError
from presswork_client.reading import Reading

TOLD = {"version": "v", "readers": 3}


class Shard(NamedTuple):
    number: int
    images: int


SHARDS = [Shard(0, 4), Shard(1, 1), Shard(2, 0), Shard(3, 7), Shard(4, 3)]
EVERY = [(shard.number, index) for shard in SHARDS for index in range(shard.images)]


def reading(among: int, fetched: list[int] | None = None, place: int = 1) -> Reading[Shard, tuple[int, int]]:
    def images(shard: Shard) -> Iterator[tuple[int, int]]:
        if fetched is not None:
            fetched.append(shard.number)
        yield from ((shard.number, index) for index in range(shard.images))

    return Reading(SHARDS, images, among, "7/0/1", place, TOLD)


@pytest.mark.parametrize("among", [0, 1, 3, 8, 100])
@pytest.mark.parametrize("done", range(len(EVERY) + 1))
def test_wherever_it_stops_the_rest_follows_in_the_same_order(among, done):
    whole = list(reading(among))
    assert sorted(whole) == EVERY and (among or whole == EVERY)
    first = reading(among)
    begin = [next(first) for _ in range(done)]
    second = reading(among)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() == TOLD | {"read": {"1": done}}
    middle = [next(second) for _ in range(min(2, len(EVERY) - done))]
    third = reading(among)
    third.load_state_dict(second.state_dict())
    assert begin + middle + list(third) == whole


def test_shards_that_were_read_are_not_fetched_again():
    fetched: list[int] = []
    resumed = reading(0, fetched)
    resumed.load_state_dict(TOLD | {"read": {"1": 12}})
    assert list(resumed) == EVERY[12:] and fetched == [4]
    fetched.clear()
    resumed = reading(2, fetched)
    resumed.load_state_dict(TOLD | {"read": {"1": 11}})
    list(resumed)
    assert fetched[-1] == 4 and len(fetched) <= 3
    fetched.clear()
    resumed = reading(2, fetched)
    resumed.load_state_dict(TOLD | {"read": {"1": len(EVERY)}})
    assert not list(resumed) and not fetched


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (TOLD | {"read": {"0": 3}}, "it lacks reader 1"),
        (TOLD | {"version": "w", "read": {"1": 3}}, "it has version 'w' instead of 'v'"),
        ({"read": {"1": 3}}, "no state of a stream"),
        (TOLD | {"read": [3]}, "no state of a stream"),
    ],
)
def test_a_state_of_something_else_is_refused(state, words):
    with pytest.raises(ClientError, match=words):
        reading(2).load_state_dict(state)
