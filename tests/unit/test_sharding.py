"""What goes into one shard: images of one job, in order, up to a size."""

import io
import itertools
import json
import tarfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.core.model.specs import Image, Spec
from worker import sharding
from worker.outcome import Encoded, Rendered
from worker.pipeline import Picture
from worker.scoring import Pending

SPEC = Spec("r", "a mug", "", 0, 64, 64, 10, 7.5)
PICTURE = Picture(np.zeros((1, 1, 3), np.uint8))


def encoded(job: int, index: int, size: int) -> Encoded:
    rendered = Rendered(Image(job, index, 1, SPEC, "png"), PICTURE, "class", 1.0, 1)
    return Encoded(rendered, PICTURE, bytes(size), Pending({}, None))


def lots(*images: tuple[int, int, int]) -> list[list[tuple[int, int]]]:
    """Of images (job, index, bytes): the job and the index of each, by shard."""
    found = sharding.lots(itertools.starmap(encoded, images))
    return [[(one.image.job_id, one.image.index) for one in lot] for lot in found]


def test_each_job_has_its_own_shard_in_order():
    assert lots((2, 0, 1), (1, 7, 1), (2, 1, 1), (1, 3, 1)) == [[(1, 3), (1, 7)], [(2, 0), (2, 1)]]
    assert lots() == []


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [
        ((50, 50), [2]),
        ((50, 51), [1, 1]),
        ((40, 40, 40, 40, 40), [2, 2, 1]),
        ((300, 1, 99, 1), [1, 2, 1]),
        ((100, 100), [1, 1]),
        ((99, 1, 1), [2, 1]),
    ],
)
def test_a_shard_ends_before_the_image_that_would_make_it_too_large(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], shards: list[int]
):
    monkeypatch.setattr(sharding, "MOST_BYTES", 100)
    assert [len(lot) for lot in lots(*((1, number, size) for number, size in enumerate(sizes)))] == shards


def test_the_size_of_a_job_s_last_shard_does_not_count_for_the_next_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "MOST_BYTES", 100)
    assert [len(lot) for lot in lots((1, 0, 60), (2, 0, 60), (2, 1, 40))] == [1, 2]


def records(lot: list[Encoded]) -> list[dict[str, Any]]:
    """What a shard says of its images."""
    with tarfile.open(fileobj=io.BytesIO(sharding.tar(lot, 77).data)) as file:
        found = [file.extractfile(member) for member in file if member.name.endswith(".json")]
        return [json.load(member) for member in found if member]


def test_a_shard_is_named_after_its_first_image_and_ends_as_a_tar_does():
    shard = sharding.tar([encoded(1, 3, 700), encoded(1, 7, 10)], 77)
    assert "/00000003-" in shard.name and "/00000007-" not in shard.name
    assert len(shard.data) % tarfile.RECORDSIZE == 0 and shard.data.endswith(bytes(2 * tarfile.BLOCKSIZE))
    assert [shard.data[one.begin :][: len(one.encoded.data)] for one in shard.members] == [bytes(700), bytes(10)]


def test_neither_prompt_stands_in_a_shard_unless_they_are_embedded():
    plain = encoded(1, 3, 10)
    image = replace(plain.image, spec=replace(SPEC, negative_prompt="cups"))
    asked = [replace(image, embed_prompt=embeds) for embeds in (False, True)]
    hidden, shown = records([replace(plain, rendered=replace(plain.rendered, image=one)) for one in asked])
    assert not hidden.keys() & {"prompt", "negative_prompt"}
    assert (shown["prompt"], shown["negative_prompt"]) == ("a mug", "cups")
