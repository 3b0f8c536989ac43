"""What a child tells its parent about the images that it renders, up to the instruction at which it dies."""

import pytest

from services.core.model.specs import Image, Spec
from worker.shared_memory import SharedState

SPEC = Spec("r", "", "", 0, 64, 64, 10, 7.5)


def images(job_id: int, count: int) -> list[Image]:
    return [Image(job_id, index, 1, SPEC, "png") for index in range(count)]


def test_the_parent_reads_the_images_of_each_claim():
    shared = SharedState()
    assert shared.images == {}
    shared.rendering((7, images(2**40, 256)), (8, images(2, 3)))
    assert shared.images == {7: [(2**40, index) for index in range(256)], 8: [(2, 0), (2, 1), (2, 2)]}
    shared.rendering((9, images(1, 1)))
    assert shared.images == {9: [(1, 0)]}
    shared.rendering()
    assert shared.images == {}


def test_a_child_that_dies_while_it_writes_leaves_what_was_there():
    shared = SharedState()
    shared.rendering((7, images(1, 2)))

    class Torn(SharedState):
        def _set_number(self, place: int, value: int) -> None:
            if place < 64:  # the last word, by which it counts
                raise KeyboardInterrupt
            super()._set_number(place, value)

    shared.__class__ = Torn
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            shared.rendering((8, images(2, 256)))
    assert shared.images == {7: [(1, 0), (1, 1)]}
