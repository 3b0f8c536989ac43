"""What presswork-mini can draw and how people may ask for it: colours, things, backgrounds, arrangements, captions.

Which combinations are kept out of training is decided here.
"""

import itertools
import random
import re
from dataclasses import dataclass
from functools import lru_cache

COLOURS = {
    "red": (212, 42, 46),
    "orange": (240, 134, 34),
    "yellow": (248, 208, 48),
    "green": (52, 152, 66),
    "teal": (22, 150, 152),
    "blue": (38, 92, 204),
    "purple": (126, 58, 168),
    "pink": (240, 118, 168),
    "brown": (126, 78, 44),
    "black": (40, 40, 46),
    "white": (242, 240, 236),
}
"""Name -> 8-bit sRGB."""

THINGS = {
    "mug": ("mug", "cup"),
    "chair": ("chair",),
    "lamp": ("lamp",),
    "shoe": ("shoe", "sneaker"),
    "bag": ("bag", "handbag"),
    "bottle": ("bottle",),
    "table": ("table", "desk"),
    "hat": ("hat",),
    "book": ("book",),
    "clock": ("clock", "alarm clock"),
    "plant": ("plant", "potted plant"),
    "box": ("box", "parcel"),
}
"""Thing -> the words for it."""

BACKGROUNDS = {
    "white": ("white",),
    "grey": ("grey", "gray"),
    "cream": ("cream", "beige"),
    "blue": ("light blue", "sky blue"),
    "pink": ("light pink", "pale pink"),
    "mint": ("mint", "light green"),
    "charcoal": ("charcoal", "dark grey"),
    "wood": ("wooden", "oak"),
}
"""Background -> the words for it; wood is a floor before a cream wall, the others are seamless paper."""

ARRANGEMENTS = ("centre", "small", "large", "left", "right", "two")
UNSEEN = {("white", "white"), ("black", "charcoal")}
"""(colour, background) that would hide the thing; neither drawn nor asked for."""

HELD_OUT = 500
_OPENINGS = ("", "a photo of ", "a picture of ", "a catalogue photo of ", "a studio photo of ", "product photo of ")
_ADJECTIVES = ("", "", "", "", "", "simple ", "modern ", "plain ", "new ", "classic ")
_ENDINGS = ("", "", "", "", ", studio photo", ", soft light", ", catalogue style", ", product photo", ", soft shadow")
_PAPER = ("on a {} background", "on a {} backdrop", "against a {} background", "in front of a {} wall", "on {}",
          "{} background", "plain {} backdrop")  # fmt: skip
_FLOOR = ("on a {} floor", "on a {} floor", "on {} boards", "{} floor")
_WHERE = {
    "left": ("on the left", "to the left", "at the left"),
    "right": ("on the right", "to the right", "at the right"),
}
_SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_PAIRS = ("two ", "a pair of ")


@dataclass(frozen=True, slots=True, order=True)
class Scene:
    """One combination: keys of COLOURS, THINGS, BACKGROUNDS and a member of ARRANGEMENTS."""

    colour: str
    thing: str
    background: str
    arrangement: str


@lru_cache(maxsize=1)
def scenes() -> tuple[Scene, ...]:
    """Every combination there is, in a fixed order."""
    every = itertools.product(COLOURS, THINGS, BACKGROUNDS, ARRANGEMENTS)
    return tuple(Scene(*choice) for choice in every if (choice[0], choice[2]) not in UNSEEN)


@lru_cache(maxsize=1)
def held_out() -> tuple[Scene, ...]:
    """The HELD_OUT combinations that training never sees; the same ones always."""
    return tuple(random.Random("presswork-mini").sample(scenes(), HELD_OUT))


@lru_cache(maxsize=1)
def for_training() -> tuple[Scene, ...]:
    kept_out = set(held_out())
    return tuple(scene for scene in scenes() if scene not in kept_out)


def caption(scene: Scene, chance: random.Random) -> str:
    """A prompt that asks for `scene`, worded at random: "a small red mug on a white background"."""
    noun = chance.choice(THINGS[scene.thing])
    background = chance.choice(BACKGROUNDS[scene.background])
    place = chance.choice(_FLOOR if scene.background == "wood" else _PAPER).format(background)
    size = chance.choice(_SIZES.get(scene.arrangement, ("",)))
    words = " ".join(part for part in (size, (chance.choice(_ADJECTIVES) + scene.colour).strip(), noun) if part)
    if scene.arrangement == "two":
        subject = chance.choice(_PAIRS) + _plural(words)
    else:
        subject = words if chance.random() < 0.25 else f"{_article(words)} {words}"
    where = chance.choice(_WHERE.get(scene.arrangement, ("",)))
    comma = ", " if place.endswith(("backdrop", "background")) and not place.startswith(("on", "against")) else " "
    spot = (f" {where}{comma}{place}" if chance.random() < 0.5 else f"{comma}{place}, {where}") if where else (
        comma + place
    )  # fmt: skip
    ending = chance.choice(_ENDINGS)
    return f"{'' if ending else chance.choice(_OPENINGS)}{subject}{spot}{ending}"


def plain_caption(scene: Scene) -> str:
    """The plainest wording, for figures and tests."""
    size = f"{scene.arrangement} " if scene.arrangement in _SIZES else ""
    words = f"{size}{scene.colour} {scene.thing}"
    subject = f"two {_plural(words)}" if scene.arrangement == "two" else f"{_article(words)} {words}"
    where = f" {_WHERE[scene.arrangement][0]}" if scene.arrangement in _WHERE else ""
    background = BACKGROUNDS[scene.background][0]
    return f"{subject}{where} on a {background} {'floor' if scene.background == 'wood' else 'background'}"


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Every word that a caption may hold, sorted: the model's whole vocabulary."""
    nouns = [noun for names in THINGS.values() for noun in names]
    phrases = [
        *_OPENINGS, *_ADJECTIVES, *_ENDINGS, *_PAPER, *_FLOOR, *_PAIRS, *COLOURS, *nouns, *map(_plural, nouns),
        *(name for names in BACKGROUNDS.values() for name in names),
        *(phrase for phrases in (*_WHERE.values(), *_SIZES.values()) for phrase in phrases), "a", "an",
    ]  # fmt: skip
    return tuple(sorted({word for phrase in phrases for word in re.findall("[a-z]+", phrase)}))


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("x") else "s")


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"
