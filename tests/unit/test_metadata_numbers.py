"""A number of metadata has one text, whoever wrote it, in filters, in columns and in what is exported."""

import json
from typing import Any

import pytest

from services.core.exports.zip_archive import csv_line
from services.core.model import metadata_filters, metadata_types

NUMBERS = [
    ("1e-05", "0.00001"), ("0.00001", "0.00001"), ("1E-5", "0.00001"), ("-1e-7", "-0.0000001"), ("0.1", "0.1"),
    ("1.0", "1"), ("1", "1"), ("-0.0", "0"), ("-0", "0"), ("0.50", "0.5"), ("100", "100"), ("1e2", "100"),
    ("1e22", "10000000000000000000000"), ("10000000000000000000000", "10000000000000000000000"),
    ("9007199254740993", "9007199254740993"), ("123456789012345678901234", "123456789012345678901234"),
    ("1.7976931348623157e308", "17976931348623157" + "0" * 292),
]  # fmt: skip


@pytest.mark.parametrize(("written", "text"), NUMBERS)
def test_a_number_has_one_text(written: str, text: str) -> None:
    value: Any = json.loads(written)
    assert metadata_types.text_of(value) == text
    cells = metadata_types.cells({"n": "text"}, {"n": value})
    assert cells == {"metadata.n": text}
    [wish] = metadata_filters.conditions([f"n={written}"])
    assert wish.number == text
    assert metadata_filters.holds({"n": value}, [wish])
    assert metadata_filters.holds({"n": value}, metadata_filters.conditions([f"n={text}"]))
    assert not metadata_filters.holds({"n": value}, metadata_filters.conditions([f"n!={written}"]))
    if isinstance(value, float):
        assert csv_line([value]) == f"{text}\r\n".encode()
        assert str(metadata_types.cells({"n": "float"}, {"n": -0.0})["metadata.n"]) == "0.0"


def test_texts_are_compared_as_they_are() -> None:
    [wish] = metadata_filters.conditions(["n=1.0"])
    assert not metadata_filters.holds({"n": "1"}, [wish]) and metadata_filters.holds({"n": "1.0"}, [wish])
    assert metadata_filters.holds({"n": True}, metadata_filters.conditions(["n=true"]))
    assert not metadata_filters.holds({"n": True}, metadata_filters.conditions(["n=1"]))
    assert metadata_filters.holds({}, metadata_filters.conditions(["n="]))
    for word in ("1e9999", "0x10", "1_000", "٣", "1,5", "01", "1." + "5" * 500):
        assert metadata_filters.conditions([f"n={word}"])[0].number
