"""How much a comparison of two versions holds in memory."""

import tracemalloc
from array import array

from services.core.datasets import comparison, held
from services.core.datasets.dataset_records import HeldShard


def test_a_comparison_holds_a_byte_for_each_image_that_differs():
    count = 50_000
    packed = held.pack([held.OfJob(7, array("I", range(count)), bytearray(count))])
    shard = HeldShard(1, "train", 0, count, True, None, packed)
    flags: dict[int, bytearray] = {}
    comparison._flag(flags, [], 1)
    tracemalloc.start()
    comparison._flag(flags, [shard], 2)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 4 * count  # a set of pairs took some 200 bytes for each
    assert flags[7].count(2) == count
    assert next(comparison._places(flags, 2))[1] == 0
