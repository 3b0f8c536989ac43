"""Terms of a content policy: how text is folded, so that a term is found however Unicode spells it, and finding them.

Folding is NFKC, case folding, and the removal of invisible characters and of marks on Latin, Greek and Cyrillic
letters; a second folding also replaces letters that look like Latin ones (Unicode's confusables). A term is a word or a
phrase and is found as whole words: "ass" is not found in "glass". Of scripts that put no spaces between words, each
character counts as a word. Letters that are spelled apart ("n u d e", "n.u.d.e") are read as one word, too. Digits in
the place of letters ("nud3") are not.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from itertools import groupby, product

LONGEST = 200  # characters of a term
_ASCII_WORD = re.compile("[a-z0-9]+")
# Thai, Lao, Myanmar, Khmer, kana and Chinese characters.
_NO_SPACES = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
_SPELLED = 3  # single letters in a row that are read as one word


class Terms:
    """Terms that are looked for together; any thread may look."""

    def __init__(self, terms: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for term in terms:
            for words in readings(term):
                if words:
                    self._by_first.setdefault(words[0], []).append((words, term))

    def __bool__(self) -> bool:
        return bool(self._by_first)

    def find(self, text: str) -> list[str]:
        """The terms that the text holds, each once, in the order of the text."""
        if not self._by_first:
            return []
        found: dict[str, None] = {}
        for words in readings(text):
            for place, word in enumerate(words):
                for wanted, term in self._by_first.get(word, ()):
                    if words[place : place + len(wanted)] == wanted:
                        found.setdefault(term)
        return list(found)


def folded(term: str) -> str:
    """The words of a term as they are compared, with spaces between them; "" if it has none. Two terms of one folding
    are the same term."""
    return " ".join(_words(_fold(term, invisible="", looks_alike=False)))


def readings(text: str) -> Iterator[tuple[str, ...]]:
    """The words of a text: as it is folded, and, where it could hide something, as it could be read besides."""
    if text.isascii():
        foldings = [text.casefold()]
    else:
        hides = any(unicodedata.category(character) == "Cf" for character in text)
        ways = product(("", " ") if hides else ("",), (False, True))
        foldings = [_fold(text, invisible=invisible, looks_alike=alike) for invisible, alike in ways]
    for folding in dict.fromkeys(foldings):
        words = tuple(_words(folding))
        yield words
        if spelled := tuple(_joined(words)):
            yield spelled


def _fold(text: str, *, invisible: str, looks_alike: bool) -> str:
    """`invisible` replaces each invisible character."""
    if text.isascii():
        return text.casefold()
    text = unicodedata.normalize("NFKC", text)
    if looks_alike:
        text = text.translate(_latin())
    kept: list[str] = []
    is_european = True
    for character in unicodedata.normalize("NFKD", text.casefold()):
        category = unicodedata.category(character)
        if category == "Cf" or _INVISIBLE.match(character):
            kept.append(invisible)
        elif category in ("Mn", "Mc", "Me"):
            if not is_european and category != "Me":
                kept.append(character)  # a vowel of a word, such as one in Hindi
        else:
            is_european = character < "\u0530"
            kept.append(character)
    return "".join(kept)


def _words(folding: str) -> Iterable[str]:
    if folding.isascii():
        return _ASCII_WORD.findall(folding)
    parts = (one if one.isalnum() or unicodedata.category(one)[0] == "M" else " " for one in folding)
    return _NO_SPACES.sub(r" \1 ", "".join(parts)).split()


def _joined(words: tuple[str, ...]) -> Iterator[str]:
    """The words with letters that are spelled apart put together; nothing if there are none."""
    runs = [
        (is_letter, list(run)) for is_letter, run in groupby(words, lambda word: len(word) == 1 and "a" <= word <= "z")
    ]
    if not any(is_letter and len(run) >= _SPELLED for is_letter, run in runs):
        return
    for is_letter, run in runs:
        yield from ["".join(run)] if is_letter and len(run) >= _SPELLED else run


@cache
def _latin() -> dict[int, str]:
    """Letters that look like Latin ones, by the table of Unicode's confusables that confusable-homoglyphs brings."""
    table = json.loads((resources.files("confusable_homoglyphs") / "confusables.json").read_text(encoding="utf-8"))
    found: dict[int, str] = {}
    for character, alike in table.items():
        latin = [one["c"] for one in alike if len(one["c"]) == 1 and one["c"].isascii() and one["c"].isalpha()]
        if len(character) == 1 and not character.isascii() and latin:
            found[ord(character)] = latin[0]
    return found
