"""The names of image files, whatever the custom_ids are."""

import re

import pytest
from datasets import data_files
from hypothesis import given
from hypothesis import strategies as st

from services.core.model import file_names
from tests.dashboard.hostile import HOSTILE

ODD = [
    "a", "A", "a~0", "a~000001", "000001", "con", "CON.x", "nul", "COM\u00b9", "com1.txt", "\u00e9", "e\u0301", "a.",
    "a ", "x.part", "x.csv", "test", "a-test-1", "-rf", ".hidden", "a/b", "a\\b", "..", "\ud800", "a.b." * 32,
    "a" * 128,
]  # fmt: skip
Safe = st.from_regex(r"[A-Za-z0-9._~-]{1,12}", fullmatch=True)
Ids = st.none() | st.text(max_size=300) | Safe | st.sampled_from(ODD)
RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"),
}


def names(custom_ids: list[tuple[str | None, int]], by: str = "custom_id") -> list[str]:
    unique, index, found = file_names.UniqueNames(by), 0, []
    for custom_id, n in custom_ids:
        for place in range(n):
            found.append(unique.of(custom_id, place, n, index, "webp"))
            index += 1
    return found


def check(found: list[str]) -> None:
    assert all(name.isascii() for name in found)  # so Unicode's normal forms are no matter
    assert len({name.lower() for name in found}) == len(found)
    for name in found:
        part = name + file_names.PART
        assert len(part.encode()) <= 255
        assert not re.search(r'[\x00-\x1f<>:"/\\|?*]', part) and not name.startswith((".", "-", " "))
        assert name.partition(".")[0].lower() not in RESERVED
    assert not {f"{name}{file_names.PART}" for name in found} & set(found)


@given(st.lists(st.tuples(Ids, st.integers(1, 3)), max_size=12))
def test_no_name_is_another_ones_or_invalid_on_any_file_system(custom_ids: list[tuple[str | None, int]]) -> None:
    check(names(custom_ids))
    check(names(custom_ids, "index"))
    given_once = [custom_id for custom_id, _ in custom_ids]
    check([file_names.with_index(custom_id, index, "jpeg") for index, custom_id in enumerate(given_once)])


def test_a_name_is_the_custom_id_where_that_is_unique_and_safe() -> None:
    asked = [("mug", 1), ("jug", 2), (None, 1), ("Mug", 1), ("jug", 1), ("con", 1), ("jug", 2), ("000003", 1)]
    assert [name.removesuffix(".webp") for name in names(asked)] == [
        "mug", "jug~0", "jug~1", "000003", "Mug~000004", "jug", "000006", "jug~000007", "jug~000008", "000003~000009",
    ]  # fmt: skip
    assert file_names.with_index("SKU.1", 7, "jpeg") == "SKU~1-00000007.jpg"


@pytest.mark.parametrize("word", sorted({word for words in data_files.SPLIT_KEYWORDS.values() for word in words}))
def test_no_name_is_taken_for_a_split(word: str) -> None:
    for custom_id in (word, f"a-{word}", f"{word}.1", f"a {word} b", f"1{word}2", f"{word}-{word}", f"_{word}_"):
        for name in (*names([(custom_id, 2), (custom_id, 1)]), file_names.with_index(custom_id, 3, "png")):
            assert not re.search(rf"(^|[-._ 0-9]){word}[-._ 0-9]", name), name


@pytest.mark.parametrize("custom_id", ["a.csv", "a.csv.json", "x.tar.1", "b.parquet"])
def test_no_name_has_a_second_extension(custom_id: str) -> None:
    for name in (*names([(custom_id, 2), (custom_id, 1)]), file_names.with_index(custom_id, 3, "png")):
        assert name.count(".") == 1, name


def test_the_usual_splits_have_folders_of_their_names_and_others_none_that_is_taken_for_one() -> None:
    for usual in (["train"], ["train", "val"], ["train", "validation", "test"]):
        assert [file_names.split_folder(split, usual) for split in usual] == usual
    for others in (["train", "train_extra", "holdout"], ["val", "validation"], ["dev", "train"]):
        folders = [file_names.split_folder(split, others) for split in others]
        assert len(set(folders)) == len(folders)
        for words in data_files.SPLIT_KEYWORDS.values():
            for word in words:
                assert not any(re.search(rf"(^|[-._ 0-9]){word}([-._ 0-9]|$)", folder) for folder in folders)


@pytest.mark.parametrize("name", [*HOSTILE, *ODD, 'a";filename="b', "a\r\nSet-Cookie: b", "a;b,c"])
def test_a_download_has_one_name_of_plain_letters_whatever_its_name_is(name: str) -> None:
    assert re.fullmatch(r'attachment; filename="[A-Za-z0-9._~-]+"', file_names.attachment(name))


def test_a_usual_name_is_kept_in_a_download() -> None:
    assert file_names.attachment("sku-42~1.front_b.png") == 'attachment; filename="sku-42~1.front_b.png"'
