"""What a prompt's words mean to the simulated pipeline: colours, tables and things, and what it takes without them.

Also how light gets its colour: mixing, and the ramp from shadow to highlight.
"""

import numpy as np

from worker.pipelines.still_life import forms

Colour = tuple[float, float, float]  # 0..255

COLOURS: dict[str, Colour] = {
    "red": (200, 58, 48), "scarlet": (206, 50, 40), "crimson": (170, 32, 52), "orange": (226, 126, 46),
    "terracotta": (190, 98, 68), "yellow": (232, 188, 62), "gold": (206, 160, 64), "golden": (206, 160, 64),
    "green": (84, 140, 86), "olive": (128, 130, 66), "teal": (40, 128, 128), "turquoise": (64, 168, 164),
    "blue": (54, 98, 172), "navy": (38, 54, 104), "purple": (116, 80, 152), "violet": (124, 88, 168),
    "pink": (226, 142, 160), "brown": (126, 84, 56), "black": (46, 46, 50), "white": (236, 232, 224),
    "cream": (234, 220, 192), "beige": (214, 196, 168), "grey": (138, 140, 142), "gray": (138, 140, 142),
    "silver": (176, 180, 184),
}  # fmt: skip
WALLS: tuple[Colour, ...] = (
    (226, 214, 198), (206, 214, 206), (232, 206, 190), (198, 210, 222), (220, 208, 220), (224, 218, 186),
    (188, 200, 196), (234, 224, 212), (212, 190, 176), (176, 190, 204),
)  # fmt: skip
TABLES: dict[str, Colour] = {
    "wood": (184, 140, 100), "wooden": (184, 140, 100), "oak": (196, 156, 112), "walnut": (118, 82, 60),
    "marble": (226, 222, 218), "linen": (222, 210, 190), "stone": (164, 160, 154), "concrete": (160, 160, 160),
    "slate": (92, 100, 108),
}  # fmt: skip
HEROES: tuple[Colour, ...] = tuple(
    COLOURS[name] for name in ("terracotta", "teal", "blue", "gold", "green", "pink", "cream", "red", "olive", "purple")
)
NOUNS = {
    **{name: name for name in (*forms.TURNED, "box", "books")},
    "book": "books", "notebook": "books", "glass": "cup", "teacup": "cup", "tea": "cup", "coffee": "mug",
    "teapot": "jug", "pitcher": "jug", "kettle": "jug", "wine": "bottle", "perfume": "bottle", "lantern": "lamp",
    "honey": "jar", "jam": "jar", "soup": "bowl", "salad": "bowl", "dish": "plate", "apple": "ball", "globe": "ball",
    "sphere": "ball", "present": "box", "parcel": "box", "gift": "box",
    "flower": "vase", "flowers": "vase", "tulips": "vase", "roses": "vase", "plant": "vase", "bouquet": "vase",
}  # fmt: skip
FLOWERS = frozenset(("flower", "flowers", "tulips", "roses", "bouquet", "plant"))
LEADS = ("mug", "vase", "bowl", "jug", "bottle", "jar", "cup", "pear", "ball", "lamp", "books", "cone")
SMALL = ("ball", "egg", "pear", "cup", "drum", "cone", "candle", "jar", "box")

_LEVELS = np.arange(256)


def mix(a: Colour, b: Colour, part: float) -> Colour:
    red, green, blue = (p + (q - p) * part for p, q in zip(a, b, strict=True))
    return red, green, blue


def whole(colour: Colour) -> tuple[int, int, int]:
    return int(colour[0]), int(colour[1]), int(colour[2])


def ramp(colour: Colour, dark: float, shine: float) -> bytes:
    """A palette for `light` 0..255: a cool shadow, the colour itself, then up to the highlight.

    256 RGB triples from 6 to 248, so that adding the grain cannot wrap.
    """
    shadow = mix((26, 24, 44), colour, dark)
    bright, white = mix(colour, (255, 250, 240), 0.28), mix(colour, (255, 253, 248), shine)
    stops = np.array([shadow, colour, bright, white])
    columns = [np.interp(_LEVELS, (10, 165, 205, 255), stops[:, channel]) for channel in range(3)]
    return bytes(np.clip(np.stack(columns, axis=1), 6, 248).astype(np.uint8).tobytes())
