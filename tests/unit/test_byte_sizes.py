"""Numbers of bytes: what people write is read exactly, and shown as it was written."""

import pytest

from services.core.model import byte_sizes


@pytest.mark.parametrize(
    ("text", "count", "shown"),
    [
        ("0", 0, "0 B"),
        ("2001", 2_001, "2,001 B"),
        ("500GB", 500 * 10**9, "500 GB"),
        ("500 GiB", 500 << 30, "500 GiB"),
        ("500gb", 500 * 10**9, "500 GB"),
        ("12kB", 12_000, "12 kB"),
        ("12 KiB", 12 << 10, "12 KiB"),
        ("1.5TiB", 3 << 39, "1,536 GiB"),
        ("1.5TB", 1_500 * 10**9, "1,500 GB"),
        ("2_000,000 B", 2_000_000, "2 MB"),
        (" 7 MiB ", 7 << 20, "7 MiB"),
    ],
)
def test_what_is_written_is_read_exactly_and_shown_without_rounding(text: str, count: int, shown: str) -> None:
    assert byte_sizes.parse(text) == count
    assert byte_sizes.exact(count) == shown
    assert byte_sizes.parse(shown) == count


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1.5", "0.3kiB", "1e9", "nan", "5 PB", "5 GBs", "1..5GB", "٣GB", "1,5GB", "1,GB"]
)
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="byte"):
        byte_sizes.parse(text)


def test_what_is_used_is_told_in_the_units_of_its_limit() -> None:
    assert byte_sizes.rounded(536_870_912_000, 500 << 30) == "500 GiB"
    assert byte_sizes.rounded(536_870_912_000, 500 * 10**9) == byte_sizes.rounded(536_870_912_000) == "537 GB"
    assert [byte_sizes.rounded(count, 1 << 30) for count in (0, 1_023, 1_536, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 TiB",
    ]  # fmt: skip
