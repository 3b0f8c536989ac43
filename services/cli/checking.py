"""Checks requests before anything is sent, by the server's rules, and counts their images by shape."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from presswork_client import Client, ClientError
from services.cli.exits import BadInput
from services.core.items.custom_ids import Seen
from services.core.items.reading import Row, Source
from services.core.model import requests, strict_json
from services.core.model.errors import Problem
from services.core.model.requests import ImageRequest

MAX_PROBLEMS = 100  # that are shown

ShapeFields = tuple[str | None, str | None, int | None, float | None]  # model, size, steps, guidance scale
_SHAPE = ("model", "size", "num_inference_steps", "guidance_scale")


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
        self.by_shape[_shape(request)] += request.n

    def shapes(self) -> list[dict[str, Any]]:
        """The counts in the form of the API's estimate."""
        return [{"images": images} | _fields(shape) for shape, images in self.by_shape.items()]


class Checker:
    """Checks rows one by one, and counts the good ones. With a client, it asks the server which shapes are served."""

    def __init__(self, source: Source, client: Client | None = None) -> None:
        self.count = Count()
        self._source, self._client = source, client
        self._seen = Seen()
        self._served: dict[ShapeFields, Problem | None] = {}

    def problems(self, row: Row) -> list[Problem]:
        """What is wrong with the row; nothing, if it may be submitted."""
        if row.problem is not None:
            return [row.problem]
        request, found = _request(row)
        if request is None:
            return found
        compression: int | None = request.output_compression
        if compression not in (None, 100) and request.output_format == "png":  # 100 is true of every PNG
            rule = f"it must be {requests.ALLOWED['output_compression']}"
            message = f"output_compression is {strict_json.describe(compression)}; {rule}."
            found.append(Problem("invalid_value", message, "output_compression", row.place))
        found += [replace(problem, line=row.place) for problem in self._unserved(request)]
        name: str | None = request.custom_id
        if not found and name is not None and (first := self._seen.first(name, row.place)) != row.place:
            rule = f"it was used at {self._source.unit} {first:,} already; each must be used once in a job"
            message = f"custom_id is {strict_json.describe(name)}; {rule}."
            found.append(Problem("duplicate_custom_id", message, "custom_id", row.place))
        if not found:
            self.count.add(request)
        return found

    def _unserved(self, request: ImageRequest) -> list[Problem]:
        """The server's answer to the request's shape. A default model that nobody serves yet is no fault of a row."""
        if self._client is None:
            return []
        shape = _shape(request)
        if shape not in self._served:
            self._served[shape] = None
            try:
                self._client.estimate(shapes=[{"images": 1} | _fields(shape)])
            except ClientError as error:
                if not error.errors:
                    raise
                entry = error.errors[0]
                if entry["code"] != "unknown_model" or shape[0] is not None:
                    texts = [str(entry.get(name) or "").replace("shapes[0].", "") for name in ("message", "param")]
                    self._served[shape] = Problem(entry["code"], texts[0], texts[1] or None)
        problem = self._served[shape]
        return [] if problem is None else [problem]


@dataclass
class Survey:
    """How many rows are bad in all, and the problems of the first ones."""

    checker: Checker
    rows: int = 0
    bad: int = 0
    problems: list[Problem] = field(default_factory=list)

    def take(self, rows: Iterable[Row]) -> None:
        for row in rows:
            found = self.checker.problems(row)
            self.rows += 1
            self.bad += bool(found)
            if len(self.problems) < MAX_PROBLEMS:
                self.problems += found

    def entries(self, unit: str) -> list[dict[str, Any]]:
        return [{unit: p.line, "param": p.param, "code": p.code, "message": p.message} for p in self.problems]


def check(source: Source, rows: Iterable[Row]) -> Count:
    """Counts the requests. Raises BadInput with the number of bad rows and the first hundred problems."""
    survey = Survey(Checker(source))
    survey.take(rows)
    if survey.bad:
        raise BadInput(f"{bad_rows(survey)}; nothing was submitted.", survey.entries(source.unit)[:MAX_PROBLEMS])
    if not survey.rows:
        raise BadInput(f"{source.name} holds no requests.", [])
    return survey.checker.count


def bad_rows(survey: Survey) -> str:
    """Such as 12 of 5,000 rows are bad."""
    return f"{survey.bad:,} of {survey.rows:,} rows {'is' if survey.bad == 1 else 'are'} bad"


def _request(row: Row) -> tuple[ImageRequest | None, list[Problem]]:
    request = requests.read_plain(row.line)
    if request is not None:
        return request, []
    try:
        value = strict_json.loads(row.line)
        return ImageRequest.model_validate(value), []
    except strict_json.BadJson as error:
        return None, [error.problem(row.place)]
    except ValidationError as error:
        return None, requests.problems(error, value, row.place)


def _shape(request: ImageRequest) -> ShapeFields:
    scale: float | None = request.guidance_scale
    guided = scale if scale is None else (7.5 if scale > 1 else 1.0)  # the time depends only on whether there is any
    return request.model, request.size, request.num_inference_steps, guided


def _fields(shape: ShapeFields) -> dict[str, Any]:
    return {name: value for name, value in zip(_SHAPE, shape, strict=True) if value is not None}
