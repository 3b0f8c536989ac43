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
        texts = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]  # no lone surrogates
        found = [entry.ids for entry in self.tokenizer.encode_batch(texts)]
        rows = [ids if len(ids) <= self.length else [*ids[: self.length - 1], self.end] for ids in found]
        rows = [[*ids, *[self.padding] * (self.length - len(ids))] for ids in rows]
        return np.array(rows, np.int64), [len(ids) > self.length for ids in found]

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
