"""Prompts to tokens: a batch at once, and an honest word on what of a prompt the model cannot have read."""

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
    """A CLIP tokenizer: `length` tokens a prompt, its start and `end` among them, filled up with `padding`."""

    tokenizer: Tokenizer
    length: int
    end: int
    padding: int

    @classmethod
    def of(cls, tokenizer: Any, positions: int) -> Self:
        """From transformers' CLIPTokenizer and the number of positions that the text encoder has."""
        length = min(int(tokenizer.model_max_length), positions)
        # A copy, as the file may have been saved with a cut of its own, of which `tokens` would never hear.
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, length, tokenizer.eos_token_id, tokenizer.pad_token_id)

    def tokens(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], list[bool]]:
        """int64 (prompts, length), and which prompts were longer than that: those keep their beginning."""
        texts = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]  # no lone surrogates
        found = [entry.ids for entry in self.tokenizer.encode_batch(texts)]
        rows = [ids if len(ids) <= self.length else [*ids[: self.length - 1], self.end] for ids in found]
        rows = [[*ids, *[self.padding] * (self.length - len(ids))] for ids in rows]
        return np.array(rows, np.int64), [len(ids) > self.length for ids in found]

    def to_json(self) -> str:
        """All of it as text, for `from_json`: loading that needs neither transformers nor the checkpoint."""
        said = {"length": self.length, "end": self.end, "padding": self.padding}
        return json.dumps(said | {"tokenizer": self.tokenizer.to_str()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        said = json.loads(text)
        return cls(Tokenizer.from_str(said["tokenizer"]), said["length"], said["end"], said["padding"])


_JOINERS = "'’-"
_POSSESSIVE = re.compile("['’]s$")


def unknown_words(prompt: str, known: frozenset[str]) -> tuple[str, ...]:
    """The words of a prompt that are not in `known` (casefolded), as it writes them and each once; none where nothing
    is said to be known. A word with hyphens is known if its parts are, a possessive if its stem is."""
    if not known:
        return ()
    found: dict[str, str] = {}
    for word in _words(prompt):
        plain = unicodedata.normalize("NFC", word).casefold()
        if not _is_known(plain, known):
            found.setdefault(plain, word)
    return tuple(found.values())


def _words(prompt: str) -> list[str]:
    """Runs of letters, digits and the marks on them in any script; with the hyphens and apostrophes between them."""
    kept = (letter if letter in _JOINERS or unicodedata.category(letter)[0] in "LMN" else " " for letter in prompt)
    return [word for run in "".join(kept).split() if (word := run.strip(_JOINERS))]


def _is_known(word: str, known: frozenset[str]) -> bool:
    if word in known or _POSSESSIVE.sub("", word) in known:
        return True
    parts = [part for part in word.split("-") if part]
    return len(parts) > 1 and all(_is_known(part, known) for part in parts)
