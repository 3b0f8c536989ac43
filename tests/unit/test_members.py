"""Keys of images in shards, and the fewest reads by which many are read."""

import pytest

from services.core.storage import members
from services.core.storage.members import Place


def test_a_key_names_its_place_and_only_a_shard_has_members():
    key = Place("shop#1/aa/1/job_x/00000003-77.tar", 512, 4096).key
    assert key == "shop#1/aa/1/job_x/00000003-77.tar#512+4096"
    assert members.place(key) == Place("shop#1/aa/1/job_x/00000003-77.tar", 512, 4096)
    for other in ("a/b.png", "a.tar", "a#1/b.png", "a.tar#1", "a.tar#1+", "a.png#1+2"):
        assert members.place(other) is None and members.object_of(other) == other
    assert members.objects_of([key, "a.png", Place(members.object_of(key), 0, 1).key]) == [
        members.object_of(key), "a.png",
    ]  # fmt: skip


def test_members_that_lie_together_are_one_read_and_those_far_apart_are_not():
    shard = bytes(range(256)) * 1_000
    wanted = [Place("a.tar", 900, 100), Place("b.tar", 5, 5), Place("a.tar", 100, 300), Place("a.tar", 200_000, 50)]
    keys = [one.key for one in wanted[:2]] + ["c.png"] + [one.key for one in wanted[2:]]
    found = members.spans(keys)
    assert len(found) == 4
    read = {}
    for span in found:
        inside = members.place(span.key)
        data = b"whole" if inside is None else shard[inside.begin : inside.begin + inside.size]
        for number, part in span.parts:
            read[number] = data if part is None else data[part]
    places = {0: wanted[0], 1: wanted[1], 3: wanted[2], 4: wanted[3]}
    assert read == {2: b"whole"} | {n: shard[one.begin : one.begin + one.size] for n, one in places.items()}


@pytest.mark.parametrize(
    ("places", "reads"),
    [
        ([(0, 10), (10, 5)], ["a.tar#0+15"]),
        ([(0, 10), (9 + 65_536, 5)], ["a.tar#0+65550"]),
        ([(0, 10), (10 + 65_536, 5)], ["a.tar#0+10", "a.tar#65546+5"]),
        ([(0, 10), (10, 8_388_598)], ["a.tar#0+8388608"]),
        ([(0, 10), (10, 8_388_599)], ["a.tar#0+10", "a.tar#10+8388599"]),
        ([(1_000, 10), (1_010, 8_388_598)], ["a.tar#1000+8388608"]),
        ([(0, 10), (40_000, 10), (80_000, 10)], ["a.tar#0+80010"]),
        ([(0, 10), (10, 5_000_000), (5_000_010, 5_000_000)], ["a.tar#0+5000010", "a.tar#5000010+5000000"]),
        (
            [(0, 5_000_000), (5_000_000, 2_000_000), (7_000_000, 2_000_000)],
            ["a.tar#0+7000000", "a.tar#7000000+2000000"],
        ),
        ([(7, 20_000_000)], ["a.tar#7+20000000"]),
    ],
)
def test_a_read_ends_at_a_gap_of_more_than_64_kib_and_at_8_mib(places: list[tuple[int, int]], reads: list[str]):
    found = members.spans([Place("a.tar", *place).key for place in places])
    assert [span.key for span in found] == reads
    assert [number for span in found for number, _ in span.parts] == list(range(len(places)))
