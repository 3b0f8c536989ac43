"""Recipes of prompts: a template, the values of its names with their weights, and how many combinations to draw.

A recipe expands into requests one by one, the same ones each time, whatever the version of Python. Each request carries
its values as metadata, and no text is made twice.
"""

import hashlib
import itertools
import json
import math
import random
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.core.items import recipe_values
from services.core.items.custom_ids import Seen
from services.core.items.errors import WrongOption
from services.core.items.recipe_values import Values
from services.core.model import requests

FIELDS = frozenset(
    {"size", "num_inference_steps", "guidance_scale", "seed", "output_format", "model", "reproducibility_class"}
)
_BRACES = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]{0,63})\}|[{}]", re.ASCII)
_REPEATS = 10_000  # draws of prompts that were made already, one after the other, before a sample is given up
_ROUNDS = 4

Render = Callable[[Mapping[str, Any]], str]


class TooFew(WrongOption):
    """The recipe has fewer different prompts than the sample asks for."""


@dataclass(slots=True)
class Expansion:
    """What an expansion has made so far: `values` counts each value of each name, `repeated` the texts left out since
    they had been made."""

    made: int = 0
    repeated: int = 0
    values: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`sample`: how many prompts to draw, None for all of them in order. `seed` decides the draw."""

    template: str
    vary: Mapping[str, Values]
    negative_template: str | None = None
    liquid: bool = False
    sample: int | None = None
    seed: int = 0

    @property
    def combinations(self) -> int:
        return math.prod(len(values.values) for values in self.vary.values())

    def as_json(self) -> dict[str, Any]:
        """All that decides the prompts, with the values of files in it."""
        found = {
            "template": self.template,
            "negative_template": self.negative_template,
            "liquid": self.liquid or None,
            "vary": {name: values.as_json() for name, values in self.vary.items()},
            "sample": self.sample,
            "seed": self.seed if self.sample is not None else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the recipe: equal ones make equal prompts."""
        text = json.dumps(self.as_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def requests(
        self, compiled: Callable[[str], tuple[Render, frozenset[str]]], seen: Expansion
    ) -> Iterator[dict[str, Any]]:
        """Yields the requests and counts them in `seen`. `compiled` makes a template a function of the values, and says
        which names it uses.

        Raises WrongOption: a name of the template has no values, one that varies is used nowhere, or a text is empty.
        TooFew: there are fewer different prompts than the sample asks for.
        """
        prompt, used = compiled(self.template)
        negative, also = compiled(self.negative_template) if self.negative_template is not None else (None, frozenset())
        self._check_names(used | also)
        fields = [name for name in self.vary if name not in used | also]
        texts, repeats = Seen(), 0
        seen.values = {name: Counter() for name in self.vary}
        for chosen in self._chosen():
            if self.sample is not None and seen.made >= self.sample:
                return
            request: dict[str, Any] = {name: chosen[name] for name in fields}
            request["prompt"] = _text(prompt, chosen)
            if negative is not None:
                request["negative_prompt"] = negative(chosen)
            key = json.dumps(request, sort_keys=True, ensure_ascii=False)
            if texts.first(key, seen.made) != seen.made:
                seen.repeated, repeats = seen.repeated + 1, repeats + 1
                if repeats >= _REPEATS and self.sample is not None:
                    break
                continue
            repeats = 0
            seen.made += 1
            for name, value in chosen.items():
                seen.values[name][str(value)] += 1
            request["metadata"] = dict(chosen)
            yield request
        if self.sample is not None and seen.made < self.sample:
            raise TooFew(
                f"The sample is {self.sample:,}, and only {seen.made:,} different prompts were found among "
                f"{self.combinations:,} combinations; lower it, or give more values."
            )

    def _check_names(self, used: frozenset[str]) -> None:
        for name in sorted(used - set(self.vary)):
            raise WrongOption(f"The template names {name}, and it has no values; those that vary: {_list(self.vary)}.")
        for name in sorted(set(self.vary) - used - FIELDS):
            raise WrongOption(
                f"{name} is neither used in the template nor a field of a request that can vary "
                f"({_list(sorted(FIELDS))})."
            )

    def _chosen(self) -> Iterator[dict[str, Any]]:
        """The combinations: all in order, the last name fastest; or drawn."""
        names, lists = list(self.vary), [values.values for values in self.vary.values()]
        if self.sample is None:
            for values in itertools.product(*lists):
                yield dict(zip(names, values, strict=True))
            return
        weighted = any(values.weights is not None for values in self.vary.values())
        for places in self._drawn() if weighted else self._permuted():
            yield {name: values[place] for name, values, place in zip(names, lists, places, strict=True)}

    def _drawn(self) -> Iterator[list[int]]:
        """The places of values drawn by their weights, for ever."""
        draw = random.Random(self.seed).random  # gives the same numbers in every version of Python
        tables = [list(itertools.accumulate(each.weights or [1.0] * len(each.values))) for each in self.vary.values()]
        while True:
            yield [min(bisect(table, draw() * table[-1]), len(table) - 1) for table in tables]

    def _permuted(self) -> Iterator[list[int]]:
        """The places of all combinations, each once, in an order that the seed decides."""
        sizes = [len(values.values) for values in self.vary.values()]
        for index in range(self.combinations):
            left, places = permuted(index, self.combinations, self.seed), []
            for size in reversed(sizes):
                left, place = divmod(left, size)
                places.append(place)
            yield places[::-1]


def permuted(index: int, count: int, seed: int) -> int:
    """Where a permutation of 0 to count - 1 takes `index`: a Feistel network over the next power of 4, followed until
    it lands inside. It needs no memory, however many there are."""
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = index >> bits, index & mask
        for turn in range(_ROUNDS):
            mixed = hashlib.blake2b(b"%d %d %d" % (seed, turn, right), digest_size=16).digest()
            left, right = right, left ^ (int.from_bytes(mixed) & mask)
        index = (left << bits) | right
        if index < count:
            return index


def names(template: str) -> tuple[Render, frozenset[str]]:
    """A template with {names}, and {{ or }} for a brace. Raises WrongOption."""
    pieces: list[tuple[str, str | None]] = []
    literal, done = "", 0
    for piece in _BRACES.finditer(template):
        literal += template[done : piece.start()]
        done = piece.end()
        if piece[1] is not None:
            pieces.append((literal, piece[1]))
            literal = ""
        elif len(piece[0]) == 2:
            literal += piece[0][0]
        else:
            raise WrongOption(
                f"The template has a {piece[0]} at character {piece.start() + 1} that belongs to no name: write "
                "{name}, and {{ or }} for a brace itself."
            )
    pieces.append((literal + template[done:], None))
    used = frozenset(name for _, name in pieces if name is not None)
    return lambda chosen: "".join(text if name is None else f"{text}{chosen[name]}" for text, name in pieces), used


def read(given: Mapping[str, Any], file: Callable[[str], str], what: str) -> Recipe:
    """A recipe of a file: template, negative_template, liquid, vary, sample, seed. `file` reads a file of values that
    it names. Raises WrongOption."""
    known = {"template", "negative_template", "liquid", "vary", "sample", "seed"}
    for key in given:
        if key not in known:
            raise WrongOption(f"{what} has an unknown field {key!r}; a recipe has {_list(sorted(known))}.")
    template, negative = given.get("template"), given.get("negative_template")
    if not isinstance(template, str) or not (negative is None or isinstance(negative, str)):
        raise WrongOption(f'{what}: "template" must be text, and "negative_template", too, if it is given.')
    vary = given.get("vary")
    if not isinstance(vary, dict) or not vary:
        raise WrongOption(f'{what}: "vary" must hold one or more names with their values.')
    sample, seed = given.get("sample"), given.get("seed", 0)
    if not (sample is None or (type(sample) is int and sample > 0)) or type(seed) is not int or seed < 0:
        raise WrongOption(f'{what}: "sample" must be a whole number above 0, and "seed" one from 0.')
    liquid = given.get("liquid", False)
    if not isinstance(liquid, bool):
        raise WrongOption(f'{what}: "liquid" must be true or false.')
    lists = {name: recipe_values.of_recipe(name, value, file) for name, value in vary.items()}
    return Recipe(template, lists, negative, liquid, sample, seed)


def _text(render: Render, chosen: Mapping[str, Any]) -> str:
    text = render(chosen)
    if requests.is_blank(text):
        shown = ", ".join(f"{name}={value}" for name, value in chosen.items())
        raise WrongOption(f"The prompt of {shown[:300]} is empty.")
    return text


def _list(words: Any) -> str:
    return ", ".join(words)
