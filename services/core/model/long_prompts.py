"""How long a prompt is for a model that reads long ones: in how many chunks of tokens it is read.

It is counted where prompts come in, since images share a batch only with images of as many chunks. Counts as CLIP's
tokenizers do (byte-pair encoding of words, Radford et al., 2021), in plain Python: web servers have no other library.
"""

import heapq
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

MAX_CHUNKS = 4  # 300 of CLIP's tokens
START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_REMEMBERED, _LONGEST_REMEMBERED = 50_000, 64  # words, and letters of one
_SPECIAL = re.compile(r"<\|startoftext\|>|<\|endoftext\|>")
_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_ASCII_WORDS = re.compile(rf"{_CONTRACTIONS}|[a-z]+|[0-9]|[^\t-\r a-z0-9]+")
_WORDS = re.compile(rf"<\|startoftext\|>|<\|endoftext\|>|{_CONTRACTIONS}|[a-z]+|[0-9]|[^ a-z0-9]+")
_PARTS = re.compile(r"[a-z]+|[^a-z]+")
# White_Space of Unicode; Python's own notion also has four control characters.
_SPACES = re.compile("[\t-\r\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")

Pair = tuple[str, str]


class LongPrompts:
    """Counts a model's chunks. Safe between threads."""

    def __init__(self, document: str) -> None:
        """`document` is what `describe` wrote."""
        fields = json.loads(document)
        self.tokens = int(fields["tokens"])
        pairs = (tuple(line.split(" ")) for line in fields["merges"].splitlines())
        self._ranks: dict[Pair, int] = {(first, second): rank for rank, (first, second) in enumerate(pairs)}
        self._known: dict[str, int] = {}

    def chunks(self, *prompts: str) -> int:
        """How many chunks the longest of the prompts fills: 1 to MAX_CHUNKS. What is longer will be cut."""
        longest = max(self._count(prompt) for prompt in prompts)
        return min(max(-(-longest // self.tokens), 1), MAX_CHUNKS)

    def _count(self, prompt: str) -> int:
        """The prompt's tokens without start and end; exact unless it fits a chunk anyhow."""
        if len(prompt) <= self.tokens and prompt.isascii():  # no token is shorter than a byte
            return len(prompt)
        return self.count(prompt)

    def count(self, prompt: str) -> int:
        """The prompt's tokens without start and end."""
        found = _SPECIAL.findall(prompt) if "<|" in prompt else ()
        parts = _SPECIAL.split(prompt) if found else [prompt]
        return len(found) + sum(self._word(word) for part in parts for word in _words(part))

    def _word(self, word: str) -> int:
        count = self._known.get(word)
        if count is None:
            letters = [printable(byte) for byte in word.encode("utf-8", "replace")]
            count = len(merged([*letters[:-1], letters[-1] + _END_OF_WORD], self._ranks))
            if len(word) <= _LONGEST_REMEMBERED and len(self._known) < _REMEMBERED:
                self._known[word] = count
        return count


def describe(tokens: int, merges: Sequence[Pair]) -> str:
    """A model's chunks, of `tokens` each, and its tokenizer's merges, as `LongPrompts` takes them."""
    return json.dumps({"tokens": tokens, "merges": "\n".join(" ".join(pair) for pair in merges)})


def _words(text: str) -> list[str]:
    """The words that are encoded one by one: runs of letters, single digits, runs of other characters."""
    if text.isascii() and "<|" not in text:
        return _ASCII_WORDS.findall(text.lower())
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", text))
    text = "".join(letter.lower() for letter in text)  # one by one, so that no letter depends on its neighbours
    kinds = "".join(letter if letter.isascii() else _kind(letter) for letter in text)
    found = []
    for word in _WORDS.finditer(kinds):
        spans = _PARTS.finditer(word[0]) if word[0].startswith("<|") else [re.match(r".*", word[0])]
        found += [text[word.start() + span.start() : word.start() + span.end()] for span in spans if span]
    return found


@lru_cache(maxsize=4096)
def _kind(letter: str) -> str:
    """An ASCII character that the pattern treats like this one."""
    return {"L": "z", "N": "0"}.get(unicodedata.category(letter)[0], "!")


def merged(pieces: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Byte-pair encoding of a word: applies the merge of the lowest rank, the leftmost first, as long as there is one.

    Takes O(n log n), so that no prompt is slow.
    """
    parts: list[str | None] = list(pieces)
    after, before = [*range(1, len(parts) + 1)], [*range(-1, len(parts) - 1)]
    waiting: list[tuple[int, int, str, str]] = []

    def consider(left: int) -> None:
        right = after[left] if left >= 0 else len(parts)
        if right < len(parts):
            first, second = parts[left], parts[right]
            if first is not None and second is not None and (rank := ranks.get((first, second))) is not None:
                heapq.heappush(waiting, (rank, left, first, second))

    for place in range(len(parts) - 1):
        consider(place)
    while waiting:
        _, left, first, second = heapq.heappop(waiting)
        right = after[left]
        if right >= len(parts) or parts[left] != first or parts[right] != second:
            continue  # one of the two was merged with its other neighbour
        parts[left], parts[right] = first + second, None
        after[left] = after[right]
        if after[left] < len(parts):
            before[after[left]] = left
        consider(left)
        consider(before[left])
    return [part for part in parts if part is not None]


@lru_cache(maxsize=256)
def printable(byte: int) -> str:
    """The character that stands for a byte in GPT-2's byte-level vocabularies: the byte itself if it is printable."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in seen else chr(256 + sum(other not in seen for other in range(byte)))
