"""Long prompts: counted where they come in as the model's tokenizer counts them, and split into chunks by the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.core.model.errors import SettingsError
from services.core.model.long_prompts import LongPrompts, describe, merged
from worker.model import vocabulary
from worker.model.text import Prompts

LENGTH = 12
WORDS = (*vocabulary.WORDS, "straße", "cafés", "ééé", "日本", "!!", "!!!", "--", "aa", "aaa", "aaaa", "abab", "ab")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    encoded = ("".join(map(vocabulary.printable, word.encode())) for word in WORDS)
    vocabulary.write(folder, LENGTH, encoded)
    return Prompts.of(CLIPTokenizer.from_pretrained(folder, local_files_only=True), LENGTH)


@pytest.fixture(scope="module")
def counter(prompts: Prompts) -> LongPrompts:
    return LongPrompts(prompts.describe_long())


def in_tokenizer(prompts: Prompts, text: str) -> int:
    return len(prompts.tokenizer.encode(text).ids) - 2


PIECES = (
    "aaaaaaa |ababab|a| |!|!!|--|'s|'LL|é|e\u0301|İ|Σ|½|\uff17|\x1d|<|>|\u3000|日本|👩‍🎨|straße|42|cafés|\u093c|\u2028"
)
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=40)  # what is not assigned yet may be a letter
NEAR = st.lists(st.sampled_from([*PIECES.split("|"), "<|endoftext|>", "<|STARTOFTEXT|>"]), max_size=20).map("".join)


@settings(max_examples=100, deadline=None)
@example("don't <|endoftext|>!! <|ENDOFTEXT|>!!")
@given(TEXT | NEAR)
def test_a_prompt_counts_as_many_tokens_as_the_tokenizer_makes_of_it(
    counter: LongPrompts, prompts: Prompts, text: str
) -> None:
    assert counter.count(text) == in_tokenizer(prompts, text)


def test_words_that_are_remembered_are_short(prompts: Prompts) -> None:
    counter = LongPrompts(prompts.describe_long())
    assert counter.count(f"{'a' * 64} {'b' * 65} {'ж' * 2000}") > 1
    assert list(counter._known) == ["a" * 64]


def test_the_shipped_model_s_tokenizer_is_counted_too() -> None:
    from worker.model import checkpoint, directory

    loaded = checkpoint._tokenizer(directory.locate(directory.SHIPPED) / "tokenizer")
    shipped = Prompts.of(loaded, 24)
    counter = LongPrompts(shipped.describe_long())
    for text in ("two red mugs on a beach", "A photograph, please: of a Fox's hat!?"):
        assert counter.count(text) == in_tokenizer(shipped, text)


def test_a_prompt_takes_a_chunk_more_at_each_full_one_up_to_four(counter: LongPrompts) -> None:
    words = "a red mug on the wooden table and one fox "
    assert [counter.chunks(words * n) for n in (0, 1, 2, 3, 4, 5, 100)] == [1, 1, 2, 3, 4, 4, 4]
    assert counter.chunks("a red mug", words * 2) == 2
    assert counter.chunks("aa " * 10) == 1 and counter.chunks("aa " * 11) == 2


def test_a_word_of_thirty_thousand_letters_is_counted_in_moderate_work(counter: LongPrompts, prompts: Prompts) -> None:
    assert counter.count("ab" * 15_000) == in_tokenizer(prompts, "ab" * 15_000)


def test_merging_takes_the_lowest_rank_and_then_the_leftmost() -> None:
    ranks = {("a", "b"): 1, ("b", "c"): 0, ("a", "bc"): 2, ("a", "a"): 3}
    assert merged(list("abc"), ranks) == ["abc"]
    assert merged(list("aaa"), ranks) == ["aa", "a"]
    assert merged([], ranks) == []


def test_chunks_hold_the_prompt_in_order_each_with_a_start_and_an_end(prompts: Prompts) -> None:
    words = "a red mug on the wooden table and one fox in the river"
    (first, second, third), truncated = prompts.chunks([words, "fox", words * 3], 3)
    start, end = first[0, 0], prompts.end
    ids = prompts.tokenizer.encode(words).ids[1:-1]
    assert first[0].tolist() == [start, *ids[:10], end]
    assert second[0].tolist() == [start, *ids[10:], end, *[prompts.padding] * 7]
    assert third[0].tolist() == second[1].tolist() == [start, end, *[prompts.padding] * 10]
    assert truncated == [False, False, True]
    assert all(part.shape == (3, LENGTH) and part.dtype == np.int64 for part in (first, second, third))
    one, cut = prompts.chunks([words], 1)
    tokens, wanted = prompts.tokens([words])
    assert (one[0].tolist(), cut) == (tokens.tolist(), wanted) == (tokens.tolist(), [True])


def test_a_tokenizer_of_another_kind_is_refused(prompts: Prompts) -> None:
    fields: dict[str, Any] = json.loads(prompts.to_json())
    inner = json.loads(fields["tokenizer"])
    inner["normalizer"] = None  # capitals are other tokens then
    with pytest.raises(SettingsError, match=r"a tokenizer other than CLIP's"):
        Prompts.from_json(json.dumps(fields | {"tokenizer": json.dumps(inner)})).describe_long()


def test_the_option_is_true_or_false(tmp_path: Path) -> None:
    from worker.model import directory
    from worker.model.make import make

    make(tmp_path / "tiny")
    file = tmp_path / "tiny" / "model_index.json"
    index = json.loads(file.read_text())
    assert directory.read_index(tmp_path / "tiny").long_prompts is False
    revision = directory.revision(tmp_path / "tiny")
    for value in (True, "yes"):
        file.write_text(json.dumps(index | {"presswork": index["presswork"] | {"long_prompts": value}}))
        if value is True:
            assert directory.read_index(tmp_path / "tiny").long_prompts
            assert directory.revision(tmp_path / "tiny") == revision  # short prompts' pictures are the same
    with pytest.raises(SettingsError, match='"presswork" block'):
        directory.read_index(tmp_path / "tiny")


def test_what_is_described_is_read_again() -> None:
    assert LongPrompts(describe(75, [("a", "b</w>")])).count("ab abc") == 4
