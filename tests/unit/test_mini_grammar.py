"""What presswork-mini can be asked for, and which words it knows."""

import random
import re
from itertools import pairwise

from worker.model import vocabulary
from worker.model.mini import grammar
from worker.model.text import unknown_words


def test_the_grammar_is_as_wide_as_promised():
    assert len(grammar.COLOURS) >= 10
    assert len(grammar.THINGS) == 12
    assert len(grammar.BACKGROUNDS) >= 6
    assert len(set(grammar.scenes())) == len(grammar.scenes())


def test_500_combinations_are_kept_out_of_training_and_always_the_same():
    assert len(set(grammar.held_out())) == 500
    assert not set(grammar.held_out()) & set(grammar.for_training())
    assert len(grammar.held_out()) + len(grammar.for_training()) == len(grammar.scenes())
    first = grammar.held_out()
    grammar.held_out.cache_clear()
    assert grammar.held_out() == first


def test_a_caption_names_what_the_scene_shows_and_is_worded_in_many_ways():
    chance = random.Random(4)
    for scene in chance.sample(grammar.scenes(), 200):
        caption = grammar.caption(scene, chance)
        assert scene.colour in caption
        assert any(noun in caption for noun in grammar.THINGS[scene.thing])
        assert any(name in caption for name in grammar.BACKGROUNDS[scene.background])
    scene = grammar.scenes()[0]
    assert len({grammar.caption(scene, random.Random(n)) for n in range(100)}) > 50
    assert grammar.caption(scene, random.Random(5)) == grammar.caption(scene, random.Random(5))


def test_the_model_knows_every_word_of_its_captions():
    known = frozenset(grammar.words())
    chance = random.Random(6)
    for scene in chance.sample(grammar.scenes(), 300):
        assert unknown_words(grammar.caption(scene, chance), known) == ()
        assert unknown_words(grammar.plain_caption(scene), known) == ()


def test_each_word_of_the_vocabulary_is_one_token_and_bytes_spell_the_rest():
    tokens, merges = vocabulary.build(grammar.words())
    assert all(f"{word}</w>" in tokens for word in grammar.words())
    assert len(set(merges)) == len(merges)
    assert sorted(tokens.values()) == list(range(len(tokens)))
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for word in grammar.words():
        assert _encoded(word, ranks) == [f"{word}</w>"]


def test_words_of_the_grammar_are_plain_letters():
    assert all(re.fullmatch("[a-z]+", word) for word in grammar.words())


def _encoded(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as a tokenizer does it: one pair at a time, the lowest rank first, leftmost first."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while True:
        found = [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not found:
            return pieces
        _, at = min(found)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
