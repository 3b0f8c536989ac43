"""Items of a catalogue, read from every format: their types, their places, and what no file may do."""

import datetime as dt
import io
import random
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.core.items import encodings
from services.core.items.errors import Unreadable
from services.core.items.input_file import EXTENSIONS
from services.core.items.records import ItemFile


def read(path: Path, *wanted: str, **how: Any) -> list[Any]:
    """Each item as its place with its fields, or with what is wrong with it."""
    file = ItemFile(path=path, form=EXTENSIONS[path.suffix], wanted=wanted or ("sku", "colour", "stock"), **how)
    return [(item.place, item.problem.message if item.problem else item.fields) for item in file.items()]


def saved(folder: Path, content: str | bytes, name: str = "feed.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_items_of_text_keep_their_cells_and_a_row_that_is_broken_costs_itself_alone(tmp_path: Path) -> None:
    text = 'SKU;Stock;other;Colour\n007;1,50;x;r\u00f6d\n\n8;;y;\n9;"a "b" c";;red\n10;2;z;red;more\n11;3;;#N/A\n'
    found = read(saved(tmp_path, text))
    assert found[:2] == [
        (2, {"sku": "007", "colour": "r\u00f6d", "stock": "1,50"}),
        (4, {"sku": "8", "colour": None, "stock": None}),
    ]
    assert [place for place, _ in found[2:]] == [5, 6, 7]
    assert "a quote inside it must be doubled" in found[2][1]
    assert "it has 5 cells, and the first line has 4" in found[3][1]
    assert found[4][1] == "colour is #N/A, an error of the spreadsheet."
    [(_, row)] = read(saved(tmp_path, b"sku;colour;stock\n1;caf\xe9;2\n"), encoding="utf-8-sig")
    assert "colour holds the byte 0xe9, which is not UTF-8" in row


def test_a_column_that_is_missing_or_there_twice_ends_the_reading(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="has no column 'colour'; did you mean color"):
        read(saved(tmp_path, "sku,color,stock\n1,red,2\n"))
    with pytest.raises(Unreadable, match="two columns for stock: 'Stock' and 'STOCK'"):
        read(saved(tmp_path, "sku,colour,Stock,STOCK\n1,red,2,3\n"))
    with pytest.raises(Unreadable, match="today's feed has no column 'sku'"):
        read(saved(tmp_path, "name,colour,stock\n1,red,2\n"), title="today's feed")
    assert read(saved(tmp_path, "")) == []


def test_items_of_json_keep_their_types_and_lack_what_they_lack(tmp_path: Path) -> None:
    lines = '{"sku": 7, "colour": {"de": "rot"}, "x": 1}\n\n[1]\n{"sku": 1, "sku": 2}\n{"sku": "8", "stock": 2.0}\n'
    assert read(saved(tmp_path, lines, "feed.jsonl")) == [
        (1, {"sku": 7, "colour": {"de": "rot"}}),
        (3, "Found a list where an object is expected."),
        (4, 'The key "sku" appears twice in one object.'),
        (5, {"sku": "8", "stock": 2}),
    ]


def test_items_of_parquet_and_workbooks_keep_their_types(tmp_path: Path) -> None:
    import openpyxl
    import pyarrow as pa
    from pyarrow import parquet

    table = {
        "sku": [1.0, 2.0**53], "colour": ["red", None], "stock": [Decimal("1.50"), None],
        "since": [dt.date(2024, 1, 31), None], "at": [dt.datetime(2024, 1, 31, 8, 30), dt.datetime(2024, 2, 1)],  # noqa: DTZ001
    }  # fmt: skip
    parquet.write_table(pa.table(table), tmp_path / "feed.parquet")
    [first, second] = read(tmp_path / "feed.parquet", "sku", "colour", "stock", "since", "at")
    assert first == (
        1,
        {"sku": 1, "colour": "red", "stock": Decimal("1.50"), "since": "2024-01-31", "at": "2024-01-31 08:30:00"},
    )
    assert "sku is 9007199254740992 in a column of floats" in second[1]
    book = openpyxl.Workbook()
    for row in (("colour", "note"), ("of another sheet", 1)):
        book.active.append(row)
    sheet = book.create_sheet("feed")
    for row in (("SKU", "Colour", "Stock"), (7, "red", 1.5), (8.0, True, dt.datetime(2024, 1, 31))):  # noqa: DTZ001
        sheet.append(row)
    book.save(tmp_path / "feed.xlsx")
    assert read(tmp_path / "feed.xlsx") == [
        (2, {"sku": 7, "colour": "red", "stock": 1.5}),
        (3, {"sku": 8, "colour": True, "stock": "2024-01-31"}),
    ]


@pytest.mark.parametrize("name", ["feed.parquet", "feed.xlsx"])
def test_a_damaged_file_is_read_or_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    import openpyxl
    import pyarrow as pa
    from pyarrow import parquet

    rows = [(f"s{number}", f"colour {number % 7}", number) for number in range(300)]
    path = tmp_path / name
    if name == "feed.parquet":
        columns = {title: [row[at] for row in rows] for at, title in enumerate(("sku", "colour", "stock"))}
        parquet.write_table(pa.table(columns), path, row_group_size=50)
    else:
        book = openpyxl.Workbook()
        for row in (("sku", "colour", "stock"), *rows):
            book.active.append(row)
        book.save(path)
    good, chance = path.read_bytes(), random.Random(1)
    said = []
    for _ in range(40):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        path.write_bytes(bad[: chance.randrange(len(bad))] if chance.random() < 0.2 else bad)
        try:
            read(path)
        except Unreadable as error:
            said.append(str(error))
    assert len(said) > 10
    assert not any("\n" in sentence for sentence in said)


@pytest.mark.parametrize("name", ["feed.csv", "feed.jsonl"])
def test_a_line_without_an_end_is_given_up_at_once(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, "sku,colour,stock\n" if name == "feed.csv" else "{}\n", name)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a hole of a tebibyte: it can only be read in part
    with pytest.raises(Unreadable, match=r"line 2: it is longer than 4 MiB"):
        read(path, encoding="utf-8-sig")
    assert encodings.LONGEST_LINE == 4 << 20


def test_a_workbook_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("xl/sharedStrings.xml", "w") as part,
    ):
        for _ in range(257):
            part.write(b" " * (1 << 20))
    with pytest.raises(Unreadable, match="unpacks to more than 256 MiB"):
        read(saved(tmp_path, packed.getvalue(), "feed.xlsx"))
