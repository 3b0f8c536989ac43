"""Tables as people have them: what they are read as, and which of their rows cannot be requests."""

import datetime as dt
import io
import json
import os
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from services.core import extras
from services.core.items import cells, encodings, reading
from services.core.items.custom_ids import Fixes
from services.core.items.errors import Unreadable, WrongOption


def read(path: Path, **how: Any) -> tuple[list[Any], str]:
    """Each row as its place with its request, or with what is wrong with it; and what the file was read as."""
    how.setdefault("metadata", [])  # none, but where it is what the test is about
    found = reading.source(path, how.pop("form", None), how.pop("columns", {}), {}, **how)
    rows = [(row.place, row.problem.message if row.problem else json.loads(row.line)) for row in found.rows()]
    return rows, found.described.partition(" was read as ")[2]


def requests(path: Path, **how: Any) -> list[Any]:
    return [request for _, request in read(path, **how)[0]]


def saved(folder: Path, content: str | bytes, name: str = "p.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


MUG = [(2, {"prompt": "a mug, süß", "seed": 1}), (3, {"prompt": "b"})]


@pytest.mark.parametrize(
    ("text", "encoding", "described"),
    [
        ('prompt,seed\n"a mug, süß",1\nb,\n', "utf-8", "comma-separated, UTF-8, 2 rows"),
        ("prompt;seed\r\na mug, süß;1\r\nb;\r\n", "utf-8-sig", "semicolon-separated, UTF-8, 2 rows"),
        ("prompt\tseed\na mug, süß\t1\nb\t\n", "utf-16", "tab-separated, UTF-16, 2 rows"),
        ("prompt\tseed\na mug, süß\t1\nb\t\n", "utf-16-be", "tab-separated, UTF-16, 2 rows"),
        ("prompt|seed\na mug, süß|1\nb|\n", "utf-16-le", "pipe-separated, UTF-16, 2 rows"),
        ("seed;prompt\r1;a mug, süß\r;b\r", "cp1252", "semicolon-separated, Windows-1252, 2 rows"),
        ('prompt, seed\n"a mug, süß", 1\n"b", \n', "utf-8", "comma-separated, UTF-8, 2 rows"),
        ("  PROMPT ;Seed;;\na mug, süß;1;;\nb;;;\n;;;\n ; ;;\n", "utf-8", "semicolon-separated, UTF-8, 2 rows"),
    ],
)
def test_what_separates_cells_and_the_encoding_are_detected_and_said(
    tmp_path: Path, text: str, encoding: str, described: str
) -> None:
    for name in ("p.csv", "p.tsv", "p.txt"):
        assert read(saved(tmp_path, text, name, encoding)) == (MUG, described), name


def test_a_line_that_says_the_separator_counts_and_is_no_head(tmp_path: Path) -> None:
    for name in ("p.csv", "p.txt"):
        found, described = read(saved(tmp_path, "\ufeffsep=;\r\nprompt;a,b,c\r\nx, y;1\r\n", name))
        assert found == [(3, {"prompt": "x, y"})]
        assert described.startswith("semicolon-separated")


def test_options_overrule_what_is_detected(tmp_path: Path) -> None:
    path = saved(tmp_path, "prompt;x^n\n赤;い^2\n", encoding="shift_jis")
    how = {"delimiter": "^", "encoding": "sjis", "columns": {"prompt": "prompt;x"}}
    assert read(path, **how) == ([(2, {"prompt": "赤;い", "n": 2})], "'^'-separated, shift_jis, 1 row")
    assert requests(saved(tmp_path, "prompt;n,seed\na;1,2\n"), delimiter="semicolon") == [{"prompt": "a"}]
    for wrong in ("", '"', "ab", "\n"):
        with pytest.raises(WrongOption, match="--delimiter"):
            read(path, delimiter=wrong)
    for wrong in ("latin-99", "hex", "rot13"):
        with pytest.raises(WrongOption, match="must be an encoding such as"):
            read(path, encoding=wrong)
    with pytest.raises(Unreadable, match="is not UTF-16 as it should be"):
        read(saved(tmp_path, b"abc"), encoding="utf-16")
    with pytest.raises(WrongOption, match="is for text"):
        read(tmp_path / "p.xlsx", encoding="utf-8")


@pytest.mark.parametrize("encoding", ["cp1251", "cp1250", "mac_roman", "shift_jis", "gb18030", "koi8_r"])
def test_an_encoding_that_cannot_be_told_is_asked_for_and_not_guessed(tmp_path: Path, encoding: str) -> None:
    words = {"cp1250": "żółta gęś i źdźbło", "mac_roman": "café crème brûlée", "shift_jis": "赤いマグカップ",
             "gb18030": "木桌上的红色杯子"}.get(encoding, "красная кружка на столе")  # fmt: skip
    path = saved(tmp_path, f"prompt;seed\n{words};1\n", encoding=encoding)
    with pytest.raises(Unreadable, match="is neither UTF-8 nor like Windows-1252; --encoding says"):
        read(path)
    assert requests(path, encoding=encoding) == [{"prompt": words, "seed": 1}]


def test_western_text_of_windows_is_not_taken_for_something_else(tmp_path: Path) -> None:
    words = "l’été – “déjà vu” €5, ½ naïve Straße: Ñandú ¿qué? Ærø À LA CRÈME BRÛLÉE"
    assert requests(saved(tmp_path, f"prompt;n\n{words};1\n", encoding="cp1252"))[0]["prompt"] == words
    late = io.BytesIO(b"prompt\n" + b"a\n" * 600_000 + b"caf\xe9")
    assert (encodings.detect("p.csv", late), late.tell()) == ("cp1252", 0)
    assert requests(saved(tmp_path, b"prompt\ncaf\xe9")) == [{"prompt": "café"}]


def test_a_broken_byte_costs_its_row_and_not_the_accents_of_the_others(tmp_path: Path) -> None:
    content = "prompt,seed\ncrème brûlée,1\n".encode() + b"caf\xe9,2\nb,3\n"
    found, described = read(saved(tmp_path, content))
    assert described.endswith("UTF-8, 3 rows")
    assert [found[0][1]["prompt"], found[2][1]["prompt"]] == ["crème brûlée", "b"]
    assert "prompt holds the byte 0xe9, which is not UTF-8" in found[1][1]


def test_a_pipe_is_read_as_it_comes_and_named_where_it_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, given = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(taken, "rb")))
    with os.fdopen(given, "wb") as writer:
        writer.write(b"prompt;seed\n" + b"a;1\n" * 5_000)
        threading.Thread(target=writer.flush).start()
        coming = reading.source(Path("-"), None, {}, {}).rows()
        assert json.loads(next(coming).line) == {"prompt": "a", "seed": 1}
        rest = threading.Thread(target=lambda: (writer.write(b"caf\xe9;2\n"), writer.close()))
        assert sum(row.problem is None for _, row in zip(range(4_999), coming, strict=False)) == 4_999
        rest.start()
        assert "0xe9" in next(coming).problem.message
        rest.join()


def test_a_row_that_cannot_be_divided_costs_itself_alone(tmp_path: Path) -> None:
    text = 'prompt,seed\n"a 5" mug",1\nb,2\n"never ends,3\nc,4,5\n"d\n\ne",6\nf,7\n'
    found, _ = read(saved(tmp_path, text))
    assert found == [
        (2, 'a quoted text ends before its cell does; a quote inside it must be doubled ("").'),
        (3, {"prompt": "b", "seed": 2}),
        (4, 'a quoted text ends before its cell does; a quote inside it must be doubled ("").'),
        (5, "it has 3 cells, and the first line has 2; a text with a delimiter in it must be quoted."),
        (6, {"prompt": "d\n\ne", "seed": 6}),
        (9, {"prompt": "f", "seed": 7}),
    ]
    found, _ = read(saved(tmp_path, "prompt,seed,,\na mug, red,1,\n"))  # what follows has shifted
    assert found == [(2, found[0][1])]
    assert "it has 4 cells, and the first line has 2" in found[0][1]
    found, _ = read(saved(tmp_path, 'prompt,seed\na,1\n"never ends,2\nb,3\n'))
    assert found[1:] == [(3, "a quoted text begins here and does not end."), (4, {"prompt": "b", "seed": 3})]


def test_columns_are_found_whatever_their_case_and_a_near_name_is_suggested(tmp_path: Path) -> None:
    text = "Negative-Prompt ,STEPS,Custom ID,prompt,Prompt,Size\nblur,4,a,b,c,S\n"
    source = reading.source(saved(tmp_path, text), None, {"size": ""}, {}, metadata=[])
    remarks: list[str] = []
    source.tell = remarks.append
    found = [json.loads(row.line) for row in source.rows()]
    assert found == [{"prompt": "b", "negative_prompt": "blur", "custom_id": "a"}]
    [said] = remarks
    assert "that are not used: STEPS, Prompt, Size; --column num_inference_steps=STEPS would use STEPS" in said
    assert said.count("--column") == 1
    with pytest.raises(Unreadable, match="did you mean --column prompt=promt"):
        read(saved(tmp_path, "promt,seed\na,1\n"))
    with pytest.raises(Unreadable, match="two columns for seed: 'Seed' and 'seed '"):
        read(saved(tmp_path, "prompt,Seed,seed \na,1,2\n"))
    with pytest.raises(Unreadable, match="has no column 'titel'; it has: prompt"):
        read(saved(tmp_path, "prompt,,\na,,\n"), columns={"custom_id": "titel"})


def test_numbers_are_read_as_spreadsheets_write_them() -> None:
    for text, number in {"7,5": 7.5, "7.5": 7.5, "1,5000": 1.5, "1,500": "1,500", "1,2,3": "1,2,3"}.items():
        assert cells.parsed("guidance_scale", text) == number
    for text, number in {"3,0": 3, "3.00": 3, "3,00": 3, "3,000": "3,000", "3,5": "3,5"}.items():
        assert cells.parsed("n", text) == number


def test_a_workbook_is_read_by_what_its_cells_show(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["About this file"])
    hidden = book.create_sheet("old")
    hidden.append(["prompt"])
    hidden.sheet_state = "hidden"
    sheet = book.create_sheet("Prompts")
    sheet.append([])
    sheet.append(["Prompt ", "custom_id", "seed", "n", "guidance_scale", None, "metadata"])
    sheet.append(["a\nb", 12, 3.0, 2, 7.5, None, '{"a": 1}'])
    sheet.append([42, dt.datetime(2024, 1, 31), None, True])  # noqa: DTZ001  Excel has no zones
    sheet.append([True, 1.5, 12345678901234567])
    sheet.append(["#REF!"])
    sheet.append(["x_x000D_\ny", " z "])
    sheet["L9"] = "a remark"
    sheet["A30"] = "late"
    book.save(tmp_path / "p.xlsx")
    found, described = read(tmp_path / "p.xlsx")
    assert described == "sheet 'Prompts' of an Excel workbook, 6 rows"
    assert found[0] == (3, {
        "prompt": "a\nb", "custom_id": "12", "seed": 3, "n": 2, "guidance_scale": 7.5, "metadata": {"a": 1},
    })  # fmt: skip
    assert found[1] == (4, {"prompt": "42", "custom_id": "2024-01-31", "n": True})
    assert (found[2][0], "rounds whole numbers from 9,007,199,254,740,992 on" in found[2][1]) == (5, True)
    assert found[3] == (6, "prompt is #REF!, an error of the spreadsheet.")
    assert found[4:] == [(7, {"prompt": "x\ny", "custom_id": "z"}), (30, {"prompt": "late"})]
    assert type(found[0][1]["seed"]) is int
    data = (tmp_path / "p.xlsx").read_bytes()
    for name, content, said in (
        ("cut.xlsx", data[:2000], "is no Excel workbook"),
        ("p.csv", data, "is an Excel workbook or another archive; --format xlsx"),
        ("p.jsonl", b"\x1f\x8b\x08", "compressed with gzip"),
        ("old.csv", b"\xd0\xcf\x11\xe0", "Excel 97"),
    ):
        with pytest.raises(Unreadable, match=said):
            read(saved(tmp_path, content, name))
    assert read(saved(tmp_path, data, "p.csv"), form="xlsx")[0] == found


def test_without_openpyxl_a_workbook_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(extras.MissingExtra, match=r"needs the extra `excel`: pip install 'presswork\[excel\]'"):
        read(saved(tmp_path, b"PK\x03\x04", "p.xlsx"))


def test_ids_are_made_valid_and_the_same_ones_again(tmp_path: Path) -> None:
    given = ["mug", "", "mug", "Tasse rötlich/2", "..", "con", "mug", "mug-2", "x" * 200, "12", "12", "青"]
    text = "prompt,custom_id\n" + "".join(f"p,{name}\n" for name in given)
    path = saved(tmp_path, text)
    made = []
    for _ in range(2):
        fixes = Fixes("line")
        source = reading.source(path, None, {}, {})
        made.append([json.loads(row.line)["custom_id"] for row in fixes.rows(source.rows())])
    assert made[0] == made[1] == [
        "mug", "line-3", "mug-2", "Tasse-rotlich-2", "line-6", "con_", "mug-3", "mug-2-2", "x" * 100, "12", "12-2",
        "line-13",
    ]  # fmt: skip
    assert fixes.sentence == "10 custom_ids were changed: 4 duplicate, 5 invalid, 1 missing"


def test_a_table_takes_no_more_memory_for_more_rows(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        source = reading.source(saved(tmp_path, "prompt;custom_id\n" + "a red mug;\n" * rows), None, {}, {})
        tracemalloc.start()
        count = sum(1 for _ in Fixes("line").rows(source.rows()))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == rows
        return found

    peak(100)
    assert peak(8_000) < peak(1_000) * 1.5


def test_the_head_of_a_text_tells_a_table_from_prompts(tmp_path: Path) -> None:
    said = read(saved(tmp_path, "a red mug; big, blue\nb\n", "p.txt"))
    assert said == (
        [(1, {"prompt": "a red mug; big, blue"}), (2, {"prompt": "b"})],
        "prompts, one a line, UTF-8, 2 rows",
    )
    assert read(saved(tmp_path, "prompt;seed\na;1\n", "p.txt"), form="text")[0][0] == (1, {"prompt": "prompt;seed"})
    for encoding in ("utf-8", "utf-16"):
        found = read(saved(tmp_path, '{"prompt": "ä"}\r{"prompt": "b"}\r', "p.jsonl", encoding))
        assert found[0] == [(1, {"prompt": "ä"}), (2, {"prompt": "b"})]
    assert encodings.shown("cp1252") == "Windows-1252"


def test_lines_that_are_not_read_to_their_end_may_outlive_their_file(tmp_path: Path) -> None:
    """As when a table lacks a column: the file is closed before the reader of its lines."""
    (tmp_path / "t.csv").write_text("a\nb\n")
    with (tmp_path / "t.csv").open("rb") as file:
        found = encodings.lines("p.csv", file, "utf-8")
        assert next(found) == "a\n"
    found.close()


# --- columns that are no fields


LABELLED = 'Prompt;Split;Notes;weight\na mug;val;"=1+1\r\nnew";0.50\na jug;#N/A;;007\n'


def test_columns_that_are_no_fields_become_metadata_as_they_stand(tmp_path: Path) -> None:
    said: list[str] = []
    found = reading.source(saved(tmp_path, LABELLED), None, {}, {})
    found.tell = said.append
    assert [json.loads(row.line) for row in found.rows()] == [
        {"prompt": "a mug", "metadata": {"Split": "val", "Notes": "=1+1\nnew", "weight": "0.50"}},
        {"prompt": "a jug", "metadata": {"weight": "007"}},
    ]
    (remark,) = said
    assert "that are no fields become metadata: Split, Notes, weight" in remark


@pytest.mark.parametrize(
    ("columns", "chosen", "kept"),
    [
        ({"split": "SPLIT"}, [], {"split": "val"}),
        ({"split": "Split"}, None, {"split": "val", "Notes": "=1+1\nnew", "weight": "0.50"}),
        ({}, ["notes"], {"notes": "=1+1\nnew"}),
        ({}, [""], {}),
        ({"notes": ""}, None, {"Split": "val", "weight": "0.50"}),
    ],
)
def test_options_name_the_columns_that_become_metadata(
    tmp_path: Path, columns: dict[str, str], chosen: list[str] | None, kept: dict[str, str]
) -> None:
    first = requests(saved(tmp_path, LABELLED), columns=columns, metadata=chosen)[0]
    assert first.get("metadata", {}) == kept


def test_metadata_of_typed_tables_keep_their_types_and_pictures_stay_out(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    day = dt.date(2024, 1, 31)
    table = pa.table(
        {
            "prompt": ["a", "b"], "n_faces": [3, None], "score": [0.5, float("nan")], "ok": [True, False],
            "day": [day, day], "image_bytes": [b"x", b"y"], "tags": [["x"], []], "long": ["x" * 5_000, ""],
        }
    )  # fmt: skip
    parquet.write_table(table, tmp_path / "p.parquet")
    first, second = requests(tmp_path / "p.parquet", columns={"long": ""}, metadata=None)
    assert first["metadata"] == {"n_faces": 3, "score": 0.5, "ok": True, "day": "2024-01-31"}
    assert second["metadata"] == {"ok": False, "day": "2024-01-31"}
    (named, _) = requests(tmp_path / "p.parquet", metadata=["tags"])
    assert named["metadata"] == {"tags": '["x"]'}
    refused, fine = requests(tmp_path / "p.parquet", metadata=None)
    assert "hold 5,0" in refused and "choose columns with --metadata" in refused
    assert fine["prompt"] == "b"
    lines = saved(tmp_path, '{"caption": "a", "Split": "val", "tags": ["x"], "seed": 7}\n', "p.jsonl")
    assert requests(lines, columns={"prompt": "caption", "split": "Split"}, metadata=None) == [
        {"prompt": "a", "seed": 7, "metadata": {"split": "val", "tags": '["x"]'}}
    ]
    assert requests(lines, metadata=["Split"])[0]["metadata"] == {"Split": "val"}


def test_a_table_with_a_column_for_all_metadata_has_no_others_unless_they_are_named(tmp_path: Path) -> None:
    text = 'prompt,metadata,split\na mug,"{""sku"": 7}",val\n'
    assert requests(saved(tmp_path, text), metadata=None)[0]["metadata"] == {"sku": 7}
    assert requests(saved(tmp_path, text), metadata=["split"])[0]["metadata"] == {"sku": 7, "split": "val"}
    both = saved(tmp_path, text.replace("sku", "split"))
    assert "stands in the column metadata and in a column of its own" in requests(both, metadata=["split"])[0]


@pytest.mark.parametrize(
    ("columns", "chosen", "said"),
    [
        ({}, ["prompt"], "The column 'Prompt' of {} is the field prompt and cannot be metadata too"),
        ({"caption": "Prompt"}, None, "The column 'Prompt' of {} is the field prompt and cannot be metadata too"),
        ({"seed": "weight", "w": "weight"}, None, "The column 'weight' of {} is the field seed and cannot be metadata"),
        ({}, ["absent"], "{} has no column 'absent'; it has: Prompt, Split, Notes, weight."),
        ({"negativ_prompt": "Notes"}, None, "which is no field; did you mean negative_prompt?"),
    ],
)
def test_a_column_that_is_both_field_and_metadata_is_refused_in_a_sentence(
    tmp_path: Path, columns: dict[str, str], chosen: list[str] | None, said: str
) -> None:
    path = saved(tmp_path, LABELLED)
    with pytest.raises((Unreadable, WrongOption)) as refused:
        requests(path, columns=columns, metadata=chosen)
    assert said.format(path) in str(refused.value)


def test_two_columns_of_one_name_are_both_kept_and_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    twice = saved(tmp_path, "prompt,note,note\na,x,y\n")
    assert requests(twice, metadata=None)[0]["metadata"] == {"note": "x", "note_2": "y"}
    with pytest.raises(Unreadable, match="a name of metadata has at most 64"):
        requests(saved(tmp_path, f"prompt,{'x' * 65}\na,1\n"), metadata=None)
