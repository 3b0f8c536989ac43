"""What the command line shows of numbers."""

import pytest

from services.cli import show, units


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.12, "<1 s"),
        (0.96, "<1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "59 min"),
        (3660, "1 h 1 min"),
        (7200, "2 h"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_is_told_in_the_units_that_matter(seconds: float, shown: str) -> None:
    assert units.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (272_000, "272 kB"), (5 * 10**12, "5.0 TB")]
)
def test_a_size_is_told_to_two_or_three_digits(count: int, shown: str) -> None:
    assert units.size(count) == shown


def test_a_share_is_whole_only_when_all_of_it_is_there() -> None:
    assert [units.share(part, 1000) for part in (0, 999, 1000)] == ["0 %", "99 %", "100 %"]
    assert units.share(0, 0) == "-"


@pytest.mark.parametrize(
    ("done", "lost", "total"), [(0, 0, 1), (1, 0, 1), (0, 1, 1), (999_999, 1, 10**6), (1, 999, 1000), (3, 2, 7)]
)
def test_a_bar_is_as_wide_as_any_other_and_shows_every_loss(done: int, lost: int, total: int) -> None:
    drawn, _, _ = show.bar(done, lost, total).plain.partition("  ")
    assert len(drawn) == 40
    assert ("█" in drawn) or not (lost or done == total)
