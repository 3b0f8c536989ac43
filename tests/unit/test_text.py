"""What a model reads of a prompt, and that what it cannot have read is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worker.model import vocabulary
from worker.model.text import Prompts, unknown_words

KNOWN = frozenset({"a", "red", "fox", "studio", "photo", "t-shirt", "café", "日本", "हिन्दी"})
LENGTH = 12
NUMBERS = vocabulary.build()[0]
START, END = NUMBERS[vocabulary.START], NUMBERS[vocabulary.END]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    vocabulary.write(folder, LENGTH)
    return folder


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Prompts:
    return Prompts.of(loaded(folder), LENGTH)


def loaded(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def test_each_prompt_has_a_start_an_end_and_the_same_length(prompts: Prompts) -> None:
    tokens, truncated = prompts.tokens(["a Red  mug", ""])
    words = [NUMBERS[f"{word}</w>"] for word in ("a", "red", "mug")]
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [[START, *words, END, *[END] * (LENGTH - 5)], [START, *[END] * (LENGTH - 1)]]
    assert truncated == [False, False]


def test_a_prompt_is_said_to_be_cut_when_it_is_and_keeps_its_beginning_and_its_end(prompts: Prompts) -> None:
    fits, cut = "mug " * (LENGTH - 2), "mug " * (LENGTH - 1)
    tokens, truncated = prompts.tokens([fits, cut])
    assert truncated == [False, True]
    assert tokens[0].tolist() == tokens[1].tolist()
    assert tokens[1, 0] == START and tokens[1, -1] == END


def test_the_shorter_of_what_tokenizer_and_text_encoder_read_counts(folder: Path) -> None:
    tokens, truncated = Prompts.of(loaded(folder), 5).tokens(["mug mug mug", "mug mug mug mug"])
    assert tokens.shape == (2, 5) and truncated == [False, True]


def test_a_tokenizer_saved_with_a_cut_and_padding_of_its_own_hides_nothing(
    folder: Path, prompts: Prompts, tmp_path: Path
) -> None:
    saved = loaded(folder)
    saved.backend_tokenizer.enable_truncation(4)
    saved.backend_tokenizer.enable_padding(length=40, pad_id=0)
    saved.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer.json").read_text())
    assert said["truncation"] and said["padding"]
    again = Prompts.of(loaded(tmp_path), LENGTH)
    for texts in (["a red mug"], ["mug " * (LENGTH - 2), "mug " * LENGTH]):
        found, wanted = again.tokens(texts), prompts.tokens(texts)
        assert found[0].tolist() == wanted[0].tolist() and found[1] == wanted[1]


def test_as_json_it_reads_the_same(prompts: Prompts) -> None:
    again = Prompts.from_json(prompts.to_json())
    texts = ["A red mug", "mug " * 40, "", "日本 émaillé 🫖", "\ud800 alone", "<|endoftext|> mug's"]
    found, wanted = again.tokens(texts), prompts.tokens(texts)
    assert found[0].tolist() == wanted[0].tolist() and found[1] == wanted[1]
    assert again.to_json() == prompts.to_json()


def test_where_nothing_is_said_to_be_known_nothing_is_unknown() -> None:
    assert unknown_words("a purple wombat", frozenset()) == ()


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("", ()),
        (" , - ' ’ — 🫖 !", ()),
        ("A RED Fox, (photo)!", ()),
        ("a red wombat", ("wombat",)),
        ("Zebra, yak; zebra ZEBRA a yak", ("Zebra", "yak")),
        ("studio-photo", ()),
        ("studio-wombat", ("studio-wombat",)),
        ("a t-shirt", ()),
        ("a t shirt", ("t", "shirt")),
        ("-red- 'fox'", ()),
        ("the fox's, a fox’s", ("the",)),
        ("a fox's-photo", ()),
        ("wombat's", ("wombat's",)),
        ("red's", ()),
        ("foxes", ("foxes",)),
        ("cafe\u0301 CAFÉ", ()),
        ("日本, हिन्दी", ()),
        ("茶碗 чайник हिन्दू", ("茶碗", "чайник", "हिन्दू")),
        ("red_fox", ()),
        ("12 red", ("12",)),
    ],
    ids=ascii,
)
def test_unknown_words_are_reported_in_order_as_written_and_each_once(prompt: str, unknown: tuple[str, ...]) -> None:
    assert unknown_words(prompt, KNOWN) == unknown
