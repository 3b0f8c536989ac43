"""Checks requests before anything is sent, by the server's rules, and counts their images by shape."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from services.cli.exits import BadInput
from services.cli.reading import Source
from services.core.model import requests, strict_json
from services.core.model.errors import Problem
from services.core.model.requests import ImageRequest

_MAX_PROBLEMS = 100

ShapeFields = tuple[str | None, str | None, int | None, float | None]  # model, size, steps, guidance scale


@dataclass
class Count:
    """Counts images by the fields that decide their rendering time."""

    requests: int = 0
    images: int = 0
    drawn_seeds: int = 0
    by_shape: Counter[ShapeFields] = field(default_factory=Counter)

    def add(self, request: ImageRequest) -> None:
        self.requests += 1
        self.images += request.n
        self.drawn_seeds += request.seed is None
        scale: float | None = request.guidance_scale
        guided = (
            scale if scale is None else (7.5 if scale > 1 else 1.0)
        )  # the time depends only on whether there is guidance
        self.by_shape[request.model, request.size, request.num_inference_steps, guided] += request.n

    def shapes(self) -> list[dict[str, Any]]:
        """The counts in the form of the API's estimate."""
        names = ("model", "size", "num_inference_steps", "guidance_scale")
        return [
            {"images": images} | {name: value for name, value in zip(names, fields, strict=True) if value is not None}
            for fields, images in self.by_shape.items()
        ]


def check(source: Source) -> Count:
    """Counts the source's requests. Raises BadInput with up to a hundred problems."""
    count = Count()
    found: list[Problem] = []
    seen: dict[str, int] = {}
    for row in source.rows():
        request = _request(row.line, row.place, found)
        if len(found) >= _MAX_PROBLEMS:
            break
        if request is None:
            continue
        count.add(request)
        name: str | None = request.custom_id
        if name is not None and seen.setdefault(name, row.place) != row.place:
            message = f"custom_id {strict_json.describe(name)} is used at {source.unit} {seen[name]:,} too."
            found.append(Problem("duplicate_custom_id", message, "custom_id", row.place))
    if found:
        more = " or more" if len(found) >= _MAX_PROBLEMS else ""
        raise BadInput(
            f"{len(found)}{more} problems were found; nothing was submitted.",
            [
                {source.unit: p.line, "param": p.param, "code": p.code, "message": p.message}
                for p in found[:_MAX_PROBLEMS]
            ],
        )
    if not count.requests:
        raise BadInput(f"{source.name} holds no requests.", [])
    return count


def _request(line: bytes, place: int, found: list[Problem]) -> ImageRequest | None:
    request = requests.read_plain(line)
    if request is not None:
        return request
    try:
        value = strict_json.loads(line)
        return ImageRequest.model_validate(value)
    except strict_json.BadJson as error:
        found.append(error.problem(place))
    except ValidationError as error:
        found += requests.problems(error, value, place)
    return None
