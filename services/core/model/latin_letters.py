"""Letters that are read as Latin ones: by Unicode's table of confusables (the package confusable-homoglyphs brings it),
and by the names of the letters that Unicode means as other forms of Latin ones, such as small capitals."""

import json
import re
import unicodedata
from functools import cache
from importlib import resources

_NAMED = (range(0x80, 0x2500), range(0x2C60, 0x2C80), range(0xA720, 0xAB70), range(0x1DF00, 0x1E000),
          range(0x1F100, 0x1F200))  # fmt: skip
_OF_ONE = {"SCHWA": "e", "ENG": "n", "UPSILON": "u", "ALPHA": "a", "IOTA": "i", "ETH": "d", "ESH": "s", "EZH": "z"}
_LATIN = re.compile(
    r"LATIN (?:(?:SMALL|CAPITAL) )?LETTER (?:SMALL CAPITAL )?"
    r"(?:(?:TURNED|REVERSED|SIDEWAYS|OPEN|CLOSED|BARRED|DOTLESS|LONG|SCRIPT|BLACKLETTER|INSULAR|TAILLESS|HALF) )*"
    rf"([A-Z]|{'|'.join(_OF_ONE)})(?: BAR| WITH .+)?"
)
_FRAMED = re.compile(
    "(?:(?:CROSSED )?NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL|REGIONAL INDICATOR SYMBOL) LETTER ([A-Z])"
)
# Greek, Cyrillic and other letters that fonts of "fancy text" take for Latin ones, and neither table has.
_FANCY = dict(zip("\u03b5\u0454\u2202\u03b7\u0438\u0503\u144e\u15f4\u0e20\u0e22\u0e54\u0572\u0574\u056a",
                  "eednndnenudnud", strict=True))  # fmt: skip


@cache
def table() -> dict[int, str]:
    """By code point, the Latin letter: a fit for `str.translate`."""
    confusables = json.loads((resources.files("confusable_homoglyphs") / "confusables.json").read_text("utf-8"))
    alike = {
        character: [one["c"] for one in given] for character, given in confusables.items() if _is_foreign(character)
    }
    found = {character: letter for character, letter in map(_named, _all_named()) if letter}
    found |= _FANCY
    found |= {character: letter for character, given in alike.items() if (letter := _bare(given))}
    for character, given in alike.items():  # alike to what is alike
        if character not in found and (known := [found[one] for one in given if one in found]):
            found[character] = known[0]
    return {ord(character): letter for character, letter in found.items()}


def _is_foreign(character: str) -> bool:
    return len(character) == 1 and not character.isascii()


def _bare(alike: list[str]) -> str:
    """The first Latin letter among them, with or without marks."""
    for one in alike:
        first, rest = one[0], one[1:]
        if first.isascii() and first.isalpha() and all(unicodedata.category(mark)[0] == "M" for mark in rest):
            return first
    return ""


def _all_named() -> list[str]:
    return [chr(number) for block in _NAMED for number in block]


def _named(character: str) -> tuple[str, str]:
    """The character and the letter that its name tells; "" if it tells none."""
    name = unicodedata.name(character, "")
    match = _LATIN.fullmatch(name) or _FRAMED.fullmatch(name)
    return character, "" if match is None else _OF_ONE.get(match[1], match[1].lower())
