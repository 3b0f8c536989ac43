"""How images are fetched together: small ones a few at a time, large ones alone, in order."""

from types import SimpleNamespace
from typing import Any

from services.core.exports.shards import _LOT, _LOT_BYTES, _lots


def images(*sizes: int) -> list[Any]:
    return [SimpleNamespace(bytes=size) for size in sizes]


def test_lots_hold_few_images_and_few_bytes():
    some = images(*[3_000] * 20, *[_LOT_BYTES] * 3, *[_LOT_BYTES // 2] * 5)
    lots = list(_lots(iter(some)))
    assert [one for lot in lots for one in lot] == some
    assert [len(lot) for lot in lots] == [_LOT, _LOT, 4, 1, 1, 1, 2, 2, 1]
    assert list(_lots(iter([]))) == []
