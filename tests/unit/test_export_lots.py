"""How images are fetched together: small ones a few at a time, large ones alone, in order."""

from types import SimpleNamespace
from typing import Any

from services.core.exports.shards import _LOT, _LOT_BYTES, _SHARED, lots


def images(*sizes: int, key: str = "7.png") -> list[Any]:
    return [SimpleNamespace(bytes=size, object_key=key) for size in sizes]


def test_lots_hold_few_images_and_few_bytes():
    some = images(*[3_000] * 20, *[_LOT_BYTES] * 3, *[_LOT_BYTES // 2] * 5)
    found = list(lots(iter(some)))
    assert [one for lot in found for one in lot] == some
    assert [len(lot) for lot in found] == [_LOT, _LOT, 4, 1, 1, 1, 2, 2, 1]
    assert list(lots(iter([]))) == []


def test_images_of_shards_are_fetched_many_at_once():
    some = images(*[3_000] * (_SHARED + 7), key="7.tar#512+3000")
    assert [len(lot) for lot in lots(iter(some))] == [_SHARED, 7]
