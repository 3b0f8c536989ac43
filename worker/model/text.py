"""Turns prompts into tokens, a batch at once, and reports truncated prompts and unknown words."""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.core.model import long_prompts
from services.core.model.errors import SettingsError

# Texts that tokenizers of other kinds split otherwise.
_SAMPLES = ("A red mug, it's 42 CM wide!!", "Ünïcode été, ΣΑΣ 日本語 ½ ٣", "don't <|endoftext|> stop-go_on", " \t\n x")


@dataclass(frozen=True, slots=True)
class Prompts:
    """A CLIP tokenizer: `length` tokens per prompt, including start and `end`, filled with `padding`."""

    tokenizer: Tokenizer
    length: int
    end: int
    padding: int

    @classmethod
    def of(cls, tokenizer: Any, positions: int) -> Self:
        """From transformers' CLIPTokenizer and the number of positions that the text encoder has."""
        length = min(int(tokenizer.model_max_length), positions)
        # A copy without truncation: with the file's own, `tokens` could not see that a prompt was too long.
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, length, tokenizer.eos_token_id, tokenizer.pad_token_id)

    def tokens(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], list[bool]]:
        """int64 (prompts, length), and which prompts were too long and thus cut at the end."""
        found = self._encoded(prompts)
        rows = [ids if len(ids) <= self.length else [*ids[: self.length - 1], self.end] for ids in found]
        rows = [[*ids, *[self.padding] * (self.length - len(ids))] for ids in rows]
        return np.array(rows, np.int64), [len(ids) > self.length for ids in found]

    def chunks(self, prompts: Sequence[str], count: int) -> tuple[list[NDArray[np.int64]], list[bool]]:
        """`tokens` for each of `count` chunks, and which prompts were too long even so. Each chunk has a start and an
        end of its own, and is filled with padding."""
        if count == 1:
            tokens, truncated = self.tokens(prompts)
            return [tokens], truncated
        found = self._encoded(prompts)
        parts = [np.array([self._chunk(ids, number) for ids in found], np.int64) for number in range(count)]
        return parts, [len(ids) - 2 > count * self.chunk_tokens for ids in found]

    @property
    def chunk_tokens(self) -> int:
        """How many tokens of a prompt are read at once, without start and end."""
        return self.length - 2

    def describe_long(self) -> str:
        """How long prompts are counted, for `long_prompts.LongPrompts`.

        Raises SettingsError if the tokenizer is not one that is counted there.
        """
        model = json.loads(self.tokenizer.to_str())["model"]
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model.get("merges", ())]
        described = long_prompts.describe(self.chunk_tokens, pairs)
        try:
            counter = long_prompts.LongPrompts(described)
            words = " ".join(first + second for first, second in pairs[:200]).replace("</w>", "").upper()
            samples = (*_SAMPLES, words)
            same = all(counter.count(text) == len(self.tokenizer.encode(text).ids) - 2 for text in samples)
        except ValueError:
            same = False
        if not same:
            raise SettingsError(
                'The model has "long_prompts" but a tokenizer other than CLIP\'s, whose tokens cannot be counted when '
                "prompts come in; leave the option out."
            )
        return described

    def _encoded(self, prompts: Sequence[str]) -> list[list[int]]:
        texts = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]  # no lone surrogates
        return [entry.ids for entry in self.tokenizer.encode_batch(texts)]

    def _chunk(self, ids: Sequence[int], number: int) -> list[int]:
        """One chunk of a prompt's tokens, `ids` with their start and end."""
        first, last = 1 + number * self.chunk_tokens, 1 + (number + 1) * self.chunk_tokens
        row = [ids[0], *ids[first : min(last, len(ids) - 1)], self.end]
        return [*row, *[self.padding] * (self.length - len(row))]

    def to_json(self) -> str:
        """The tokenizer as text. `from_json` loads it without transformers and without the checkpoint."""
        fields = {"length": self.length, "end": self.end, "padding": self.padding}
        return json.dumps(fields | {"tokenizer": self.tokenizer.to_str()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        return cls(Tokenizer.from_str(fields["tokenizer"]), fields["length"], fields["end"], fields["padding"])


_JOINERS = "'’-"
_POSSESSIVE = re.compile("['’]s$")


def unknown_words(prompt: str, known: frozenset[str]) -> tuple[str, ...]:
    """The words of a prompt that are not in `known` (casefolded), as written and each once; none if `known` is empty.

    A word with hyphens is known if its parts are, a possessive if its stem is.
    """
    if not known:
        return ()
    found: dict[str, str] = {}
    for word in _words(prompt):
        plain = unicodedata.normalize("NFC", word).casefold()
        if not _is_known(plain, known):
            found.setdefault(plain, word)
    return tuple(found.values())


def _words(prompt: str) -> list[str]:
    """Runs of letters, digits and combining marks in any script, with hyphens and apostrophes inside them."""
    kept = (letter if letter in _JOINERS or unicodedata.category(letter)[0] in "LMN" else " " for letter in prompt)
    return [word for run in "".join(kept).split() if (word := run.strip(_JOINERS))]


def _is_known(word: str, known: frozenset[str]) -> bool:
    if word in known or _POSSESSIVE.sub("", word) in known:
        return True
    parts = [part for part in word.split("-") if part]
    return len(parts) > 1 and all(_is_known(part, known) for part in parts)
