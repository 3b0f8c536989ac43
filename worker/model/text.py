"""Prompts to tokens: a batch at once, and an honest word on what of a prompt the model cannot have read."""

import json
import re
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
        return cls(tokenizer.backend_tokenizer, length, tokenizer.eos_token_id, tokenizer.pad_token_id)

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


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def unknown_words(prompt: str, known: frozenset[str]) -> tuple[str, ...]:
    """The words of a prompt that are not in `known` (lower case), as it writes them and each once; none where nothing
    is said to be known."""
    if not known:
        return ()
    found = {word.casefold(): word for word in reversed(_WORD.findall(prompt)) if word.casefold() not in known}
    return tuple(reversed(found.values()))
