"""Matrices: a template and the values to vary in it, expanded into requests one by one.

The number of requests is computed before the first is made, and so is whether any of them is invalid: a few requests
stand for all (`suspects`, `representatives`). A template is text with names in braces. It is only ever filled in, never
evaluated; a brace that is neither part of a name nor doubled is refused.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from services.core.model import body, requests, strict_json, suggestions
from services.core.model.errors import Problem

MAX_NAMES = 32
FIELDS = frozenset(
    {
        "size",
        "num_inference_steps",
        "guidance_scale",
        "negative_prompt",
        "seed",
        "output_format",
        "model",
        "image",
        "strength",
        "reproducibility_class",
    }
)
# guidance_scale too: above 1, or not
_SHAPING = frozenset({"size", "num_inference_steps", "model", "strength", "reproducibility_class"})
_KEYS = frozenset({"template", "negative_template", "vary", "combine", "repeat", "seed"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_PIECE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]{0,63})\}|[{}]", re.ASCII)
_VALUES = "a list of at least one text or number"

Template = tuple[tuple[str, str | None], ...]  # literal text, and the name that follows it


class _Refused(Exception):
    """Carries one Problem."""

    def __init__(self, code: str, message: str, param: str) -> None:
        self.problem = Problem(code, message, param)
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A checked matrix. `combinations` is the number of its requests, `images` the number of images they ask for."""

    combinations: int
    images: int
    template: Template
    negative_template: Template | None
    vary: dict[str, list[Any]] = field(default_factory=dict)
    fields: frozenset[str] = frozenset()  # the names in `vary` that are fields of the request
    pairwise: bool = False
    fixed: dict[str, Any] = field(default_factory=dict)  # seed and n, if the matrix sets them

    def requests(self) -> Iterator[dict[str, Any]]:
        """Yields every combination as a request; the last name varies fastest."""
        together = zip(*self.vary.values(), strict=True) if self.pairwise else itertools.product(*self.vary.values())
        for values in together:
            yield self._request(dict(zip(self.vary, values, strict=True)))

    def suspects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields requests with their indexes: if the text or the format of any request of the matrix is invalid, it is
        so in one of these. They are at most two for each name in `vary`, and four more."""
        if self.pairwise:
            return
        first = dict.fromkeys(self.vary, 0)
        found = {self._index(places): places for places in self._suspects(first)}
        for index in sorted(found):
            yield index, self._request({name: self.vary[name][place] for name, place in found[index].items()})

    def representatives(self) -> Iterator[tuple[int, dict[str, Any], int]]:
        """Yields the first request of each kind with its index, and how many requests are of that kind. Requests of one
        kind are rendered in one shape."""
        if self.pairwise:
            yield from ((index, request, 1) for index, request in enumerate(self.requests()))
            return
        kinds = [_kinds(name, values) if name in self.fields else {None: (0, len(values))}
                 for name, values in self.vary.items()]  # fmt: skip
        for chosen in itertools.product(*(kind.values() for kind in kinds)):
            places = {name: place for name, (place, _) in zip(self.vary, chosen, strict=True)}
            request = self._request({name: self.vary[name][place] for name, place in places.items()})
            yield self._index(places), request, math.prod(count for _, count in chosen)

    def _request(self, chosen: dict[str, Any]) -> dict[str, Any]:
        request = self.fixed | {name: chosen[name] for name in self.fields}
        request["prompt"] = _fill(self.template, chosen)
        if self.negative_template is not None:
            request["negative_prompt"] = _fill(self.negative_template, chosen)
        return request

    def _index(self, places: dict[str, int]) -> int:
        index = 0
        for name, values in self.vary.items():
            index = index * len(values) + places[name]
        return index

    def _suspects(self, first: dict[str, int]) -> Iterator[dict[str, int]]:
        """The places of the values in each suspect, by name."""
        yield first
        for template in (self.template, self.negative_template or ()):
            used = {name for _, name in template if name is not None}
            texts = {name: [str(value) for value in self.vary[name]] for name in used}
            yield first | {name: _best(texts[name], len) for name in used}
            yield first | {name: _best(texts[name], requests.is_blank) for name in used}
            for name in used:
                yield first | {name: _best(texts[name], requests.is_forbidden)}
        if "output_format" in self.fields:
            yield first | {"output_format": _best(self.vary["output_format"], "png".__eq__)}


def read(value: object, defaults: dict[str, Any], max_images: int) -> tuple[Matrix | None, list[Problem]]:
    """Checks a matrix: (the matrix, []), or (None, its problems). `defaults` are the submission's."""
    if not isinstance(value, dict):
        shown = strict_json.describe(value)
        return None, [
            Problem("wrong_type", f"matrix is {shown}; it must be an object with template and vary.", "matrix")
        ]
    try:
        return _read(value, defaults, max_images), []
    except _Refused as refused:
        return None, [refused.problem]


def names(template: str) -> set[str]:
    """The names that a template uses, however wrong the rest of it is."""
    return {piece[1] for piece in _PIECE.finditer(template) if piece[1] is not None}


def _read(value: dict[str, Any], defaults: dict[str, Any], max_images: int) -> Matrix:
    for key in value:
        if key not in _KEYS:
            raise _Refused("unknown_field", suggestions.unknown_field(key, _KEYS, " in a matrix"), "matrix")
    value = {key: given for key, given in value.items() if given is not None}
    template = _template(value, "template")
    assert template is not None
    negative = _template(value, "negative_template") if "negative_template" in value else None
    vary = _vary(value.get("vary"))
    used = {name for _, name in (*template, *(negative or ())) if name is not None}
    fields = _fields(vary, used, "negative_template" in value)
    pairwise = _combine(value.get("combine", "product"), vary)
    fixed = _fixed(value, fields)
    combinations = min(map(len, vary.values())) if pairwise else math.prod(map(len, vary.values()))
    each = body.whole(fixed.get("n", defaults.get("n", 1)))
    images = combinations * (each if isinstance(each, int) and each > 0 else 1)
    if images > max_images:
        counted = f"{images:,}" if images < 10**15 else "more than 10^15"
        message = f"The matrix spans {counted} images; a job has at most {max_images:,}."
        raise _Refused("too_many_images", message, "matrix")
    _check_fields(vary, fields)
    return Matrix(combinations, images, template, negative, vary, fields, pairwise, fixed)


def _template(value: dict[str, Any], key: str) -> Template:
    param, allowed = f"matrix.{key}", requests.ALLOWED["prompt"]
    if key not in value:
        raise _Refused("missing_field", f"{param} is missing; it must be {allowed}.", param)
    text = value[key]
    if not isinstance(text, str) or len(text) > requests.PROMPT_LIMIT:
        code = "too_long" if isinstance(text, str) else "wrong_type"
        raise _Refused(code, f"{param} is {strict_json.describe(text)}; it must be {allowed}.", param)
    pieces: list[tuple[str, str | None]] = []
    literal, done = "", 0
    for piece in _PIECE.finditer(text):
        literal += text[done : piece.start()]
        done = piece.end()
        if piece[1] is not None:
            pieces.append((literal, piece[1]))
            literal = ""
        elif len(piece[0]) == 2:
            literal += piece[0][0]
        else:
            message = (
                f"{param} has a {piece[0]} at character {piece.start() + 1} that belongs to no name: write {{name}} "
                "for a name in vary (letters, digits and _), and {{ or }} for a brace itself."
            )
            raise _Refused("invalid_template", message, param)
    pieces.append((literal + text[done:], None))
    return tuple(pieces)


def _vary(value: object) -> dict[str, list[Any]]:
    rule = f"an object of 1 to {MAX_NAMES} names, each with {_VALUES}"
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_NAMES:
        shown = "missing" if value is None else strict_json.describe(value)
        code = "missing_field" if value is None else "invalid_value" if isinstance(value, dict) else "wrong_type"
        raise _Refused(code, f"matrix.vary is {shown}; it must be {rule}.", "matrix.vary")
    for name, values in value.items():
        if not _NAME.fullmatch(name):
            message = f"matrix.vary has the name {strict_json.describe(name)}; a name is 1 to 64 letters, digits and _."
            raise _Refused("invalid_value", message, "matrix.vary")
        if not isinstance(values, list) or not values:
            shown = "empty" if values == [] else strict_json.describe(values)
            raise _Refused("wrong_type", f"matrix.vary.{name} is {shown}; it must be {_VALUES}.", f"matrix.vary.{name}")
        for index, entry in enumerate(values):
            if isinstance(entry, bool) or not isinstance(entry, str | int | float):
                param = f"matrix.vary.{name}[{index}]"
                raise _Refused(
                    "wrong_type", f"{param} is {strict_json.describe(entry)}; it must be text or a number.", param
                )
            if isinstance(entry, str) and len(entry) > requests.PROMPT_LIMIT:
                param = f"matrix.vary.{name}[{index}]"
                message = f"{param} has {len(entry):,} characters; {requests.PROMPT_LIMIT:,} are allowed."
                raise _Refused("too_long", message, param)
    return value


def _fields(vary: dict[str, list[Any]], used: set[str], negative: bool) -> frozenset[str]:
    """The names in `vary` that set a field. Every name in `vary` is used in a template or is a field; every name in a
    template is in `vary`."""
    for name in sorted(used - set(vary)):
        message = f"The template names {{{name}}}, and vary has no such name; it has {', '.join(vary)}."
        raise _Refused("unknown_name", message, "matrix.template")
    fields = frozenset(name for name in vary if name not in used)
    for name in sorted(fields - FIELDS):
        message = (
            f"matrix.vary.{name} is neither used in a template nor a field that can vary; put {{{name}}} into the "
            f"template, or vary one of {', '.join(sorted(FIELDS))}."
        )
        raise _Refused("unused_name", message, f"matrix.vary.{name}")
    if negative and "negative_prompt" in fields:
        message = "negative_prompt is given twice, by negative_template and by vary."
        raise _Refused("invalid_value", message, "matrix.vary.negative_prompt")
    return fields


def _combine(value: object, vary: dict[str, list[Any]]) -> bool:
    if value not in ("product", "zip"):
        message = f'matrix.combine is {strict_json.describe(value)}; it must be "product" or "zip".'
        raise _Refused("invalid_value", message, "matrix.combine")
    lengths = {len(values) for values in vary.values()}
    if value == "zip" and len(lengths) > 1:
        lengths_found = ", ".join(f"{name} has {len(values):,}" for name, values in vary.items())
        message = f"With combine zip all lists in matrix.vary must be of one length; {lengths_found}."
        raise _Refused("invalid_value", message, "matrix.vary")
    return value == "zip"


def _fixed(value: dict[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    if "seed" in value and "seed" in fields:
        raise _Refused("invalid_value", "seed is given twice, by the matrix and by vary.", "matrix.seed")
    fixed = {}
    for key, name in (("repeat", "n"), ("seed", "seed")):
        if key in value:
            _check(name, value[key], f"matrix.{key}")
            fixed[name] = value[key]
    return fixed


def _check_fields(vary: dict[str, list[Any]], fields: frozenset[str]) -> None:
    for name in sorted(fields):
        for index, entry in enumerate(vary[name]):
            _check(name, entry, f"matrix.vary.{name}[{index}]")


def _check(name: str, value: object, param: str) -> None:
    try:
        requests.Defaults.model_validate({name: value})
    except ValidationError as error:
        code = requests.problems(error, {name: value})[0].code
        message = f"{param} is {strict_json.describe(value)}; it must be {requests.ALLOWED[name]}."
        raise _Refused(code, message, param) from None


def _best(values: list[Any], measure: Callable[[Any], Any]) -> int:
    """The place of the first value for which `measure` is greatest."""
    return max(range(len(values)), key=lambda place: measure(values[place]))


def _kinds(name: str, values: list[Any]) -> dict[Any, tuple[int, int]]:
    """The place of the first value of each kind, and how many values are of that kind."""
    found: dict[Any, tuple[int, int]] = {}
    for place, value in enumerate(values):
        kind = value if name in _SHAPING else value > 1.0 if name == "guidance_scale" else None
        first, count = found.get(kind, (place, 0))
        found[kind] = first, count + 1
    return found


def _fill(template: Template, chosen: dict[str, Any]) -> str:
    return "".join(literal if name is None else f"{literal}{chosen[name]}" for literal, name in template)
