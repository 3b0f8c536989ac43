"""What a version lost, packed: as it was said, in a few bytes an image."""

import tracemalloc
from array import array

from services.core.datasets import removals
from services.core.datasets.held import OfJob
from services.core.model import ids


def test_a_million_images_are_packed_small_and_read_one_by_one():
    tracemalloc.start()
    lost = [OfJob(job, array("I", range(250_000)), bytearray([job % 4]) * 250_000) for job in range(1, 5)]
    packed = removals.pack(lost)
    del lost
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    count = 0
    for n, (job, index, why) in enumerate(removals.unpack(packed)):
        count += 1
        if n in (0, 250_000, 999_999):
            assert (job, index) == (ids.public_job(1 + n // 250_000), n % 250_000)
            assert why == ("filtered", "no source", "rejected", "deleted")[(1 + n // 250_000) % 4]
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert count == 1_000_000
    assert len(packed) < 8 * 1_000_000
    assert peak < 20 * 1_000_000


def test_nothing_was_lost():
    assert list(removals.unpack(None)) == []
    assert list(removals.unpack(removals.pack([]))) == []
