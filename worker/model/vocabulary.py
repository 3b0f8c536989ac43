"""A small CLIP tokenizer for the models made here: byte-level BPE with one token per known word.

Any other text is spelt in bytes. The files have the format of the published tokenizers.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from services.core.model import long_prompts
from services.core.model.long_prompts import Pair, merged, printable

START, END = long_prompts.START, long_prompts.END
_WORDS = """
    a an the of on in at with and for to by from one two three small large old new wooden ceramic glass metal paper
    red blue green yellow orange purple pink brown black white grey teal mug cup bowl vase bottle jar lamp chair table
    book box plate pear apple flower tree house river mountain sea sky cat dog fox bird child studio light soft photo
    painting drawing portrait background catalogue style morning night
"""
WORDS = tuple(_WORDS.split())


def build(words: Iterable[str] = WORDS) -> tuple[dict[str, int], list[Pair]]:
    """Tokens by number, and merges: the 256 bytes, each also as the end of a word, then `words` letter by letter.

    Each word's merges continue from what the merges of the words before it give; otherwise "alarm" would split "small".
    """
    letters = [printable(byte) for byte in range(256)]
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    merges: dict[Pair, int] = {}
    for word in words:
        pieces = merged([*word[:-1], f"{word[-1]}</w>"], merges)
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = len(merges)
            pieces[:2] = [pieces[0] + pieces[1]]
            tokens[pieces[0]] = None
    return {token: number for number, token in enumerate([*tokens, START, END])}, list(merges)


def write(folder: Path, max_tokens: int, words: Iterable[str] = WORDS) -> None:
    """The tokenizer's files. `max_tokens`: the longest prompt, including start and end."""
    vocabulary, merges = build(words)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_tokens, "do_lower_case": True}
    folder.mkdir()
    for name, value in (("vocab", vocabulary), ("special_tokens_map", special), ("tokenizer_config", config)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
