"""Terms of a content policy: how text is folded, so that a term is found however Unicode spells it, and finding them.

Folding is NFKC, case folding, and the removal of invisible characters and of marks on Latin, Greek and Cyrillic
letters; a second folding also replaces letters that look like Latin ones (`latin_letters.py`), but for the words of a
text that is written in Cyrillic or Greek: "роги" looks like "porn" and is a word. A term is a word or a
phrase and is found as whole words: "ass" is not found in "glass". Where models see two words, so does a reading: at
invisible characters, at marks that make no letter with the one before, and between letters and digits ("nude1"). Of
scripts that put no spaces between words, each character counts as a word. Letters that are spelled apart ("n u d e",
"n.u.d.e") are read as one word, too. Digits in the place of letters ("nud3") are not.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby, product

from services.core.model import latin_letters

LONGEST = 200  # characters of a term
_ASCII_WORD = re.compile("[a-z0-9]+")
# Thai, Lao, Myanmar, Khmer, kana and Chinese characters.
_NO_SPACES = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
_LETTERS_OR_DIGITS = re.compile(r"[0-9]+|[^0-9]+")
_HAS_LATIN = re.compile("[A-Za-z]")
# Words of two letters or more of one script.
_OF_A_SCRIPT = tuple(re.compile(f"[{letters}]{{2,}}") for letters in (
    "\u0400-\u0481\u048a-\u052f", "\u0370-\u0373\u0376-\u037d\u0386-\u03ff\u1f00-\u1fff",
))  # fmt: skip
_ARTICLES = ("a", "i")  # words of one letter, which may stand before one that is spelled apart
_SPELLED = 3  # single letters in a row that are read as one word


class Terms:
    """Terms that are looked for together; any thread may look."""

    def __init__(self, terms: Iterable[str]) -> None:
        # By the first word and the number of words, so that however many terms begin alike, a text is read as fast.
        self._by_first: dict[str, dict[int, dict[tuple[str, ...], list[str]]]] = {}
        for term in terms:
            for words in readings(term, is_term=True):
                if words:
                    of_length = self._by_first.setdefault(words[0], {}).setdefault(len(words), {})
                    of_length.setdefault(words, []).append(term)

    def __bool__(self) -> bool:
        return bool(self._by_first)

    def find(self, text: str) -> list[str]:
        """The terms that the text holds, each once, in the order of the text."""
        if not self._by_first:
            return []
        found: dict[str, None] = {}
        for words in readings(text):
            for place, word in enumerate(words):
                for length, terms in self._by_first.get(word, {}).items():
                    found.update(dict.fromkeys(terms.get(words[place : place + length], ())))
        return list(found)


def folded(term: str) -> str:
    """The words of a term as they are compared, with spaces between them; "" if it has none. Two terms of one folding
    are the same term."""
    return " ".join(_words(_fold(term, invisible="", looks_alike=False)))


def readings(text: str, *, is_term: bool = False) -> Iterator[tuple[str, ...]]:
    """The words of a text: as it is folded, and, where it could hide something, as it could be read besides. A term has
    fewer: letters and digits that touch stay one word, and one without Latin letters looks like nothing else."""
    if text.isascii():
        foldings = [text.casefold()]
    else:
        alike = (False,) if is_term and not _HAS_LATIN.search(text) else (False, True)
        ways = product(("", " ") if _hides(text) else ("",), alike)
        foldings = [_fold(text, invisible=invisible, looks_alike=looks) for invisible, looks in ways]
    for folding in dict.fromkeys(foldings):
        words = tuple(_words(folding))
        yield words
        if spelled := tuple(_joined(words)):
            yield spelled
        if not is_term and (split := tuple(_split(words))) != words:
            yield split


def _hides(text: str) -> bool:
    """Whether it holds what is not seen, or a mark that makes no letter with the one before."""
    return any(
        character >= "\u0080" and (_is_invisible(character) or unicodedata.category(character) in ("Mn", "Mc", "Me"))
        for character in unicodedata.normalize("NFKC", text)
    )


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or _INVISIBLE.match(character) is not None


def _fold(text: str, *, invisible: str, looks_alike: bool) -> str:
    """`invisible` replaces each invisible character, and each mark that makes no letter with the one before."""
    if text.isascii():
        return text.casefold()
    text = unicodedata.normalize("NFKC", text)
    if not looks_alike:
        return _fold_part(text, invisible, {})
    alike, done, parts = latin_letters.table(), 0, []
    for first, past in _ordinary(text, alike):
        parts += [_fold_part(text[done:first], invisible, alike), _fold_part(text[first:past], invisible, {})]
        done = past
    return "".join([*parts, _fold_part(text[done:], invisible, alike)])


def _ordinary(text: str, alike: dict[int, str]) -> list[tuple[int, int]]:
    """Where words stand that are words of another script: some word of that script has a letter that looks like no
    Latin one, so the text is written in it."""
    found: list[tuple[int, int]] = []
    for script in _OF_A_SCRIPT:
        words = [word.span() for word in script.finditer(text) if _is_whole(text, *word.span())]
        bare = (unicodedata.normalize("NFKD", text[first:past].casefold()) for first, past in words)
        if any(one.isalpha() and ord(one) not in alike for word in bare for one in word):
            found += words
    return sorted(found)


def _is_whole(text: str, first: int, past: int) -> bool:
    """Whether nothing that could belong to the word stands beside it."""
    beside = text[max(first - 1, 0) : first] + text[past : past + 1]
    return not any(one.isalnum() or unicodedata.category(one)[0] == "M" or _is_invisible(one) for one in beside)


def _fold_part(text: str, invisible: str, alike: dict[int, str]) -> str:
    text = text.translate(alike)
    kept: list[str] = []
    is_european = True
    for whole in text.casefold():
        is_mark = unicodedata.category(whole) in ("Mn", "Mc", "Me")
        for character in unicodedata.normalize("NFKD", whole):
            category = unicodedata.category(character)
            if _is_invisible(character):
                kept.append(invisible)
            elif category in ("Mn", "Mc", "Me"):
                if not is_european and category != "Me":
                    kept.append(character)  # a vowel of a word, such as one in Hindi
                elif is_mark:
                    kept.append(invisible)
            else:
                is_european = character < "\u0530"
                kept.append(alike.get(ord(character), character))
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
        if not is_letter or len(run) < _SPELLED:
            yield from run
            continue
        yield "".join(run)
        if run[0] in _ARTICLES and len(run) > _SPELLED:
            yield "".join(run[1:])


def _split(words: tuple[str, ...]) -> Iterable[str]:
    """The words, with letters and digits as words of their own."""
    for word in words:
        yield from _LETTERS_OR_DIGITS.findall(word)
