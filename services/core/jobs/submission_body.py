"""A submission's JSON body in parts: options, defaults, and requests as a list or as a matrix."""

from collections.abc import Iterable, Sized
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from services.core.jobs import submissions
from services.core.model import requests, strict_json, templates
from services.core.model.errors import Problem
from services.core.model.templates import Matrix

M = TypeVar("M", bound=BaseModel)


@dataclass(slots=True)
class SubmissionBody:
    """The body's parts. `problems` are those of the options, defaults and matrix; requests are checked by `fill`."""

    images: Iterable[Any] = ()
    matrix: Matrix | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, body: dict[str, Any], max_images: int) -> "SubmissionBody":
        """Removes these parts from `body`; the job's options are left in it."""
        order = cls()
        defaults = body.pop("defaults", None)
        if isinstance(defaults, dict):
            order.defaults = defaults
        elif defaults is not None:
            order.problems.append(wrong("defaults", defaults))
        asked = body.pop("reproducibility_class", None)  # of the whole job
        if asked is not None:
            order.defaults = {"reproducibility_class": asked, **order.defaults}
        if body.get("matrix") is not None and body.get("images") is None:
            body.pop("images", None)
            order.matrix, found = templates.read(body.pop("matrix"), order.defaults, max_images)
            order.problems += found
            return order
        images = body.pop("images", None)
        if (
            isinstance(images, Iterable)
            and isinstance(images, Sized)
            and not isinstance(images, str | dict)
            and len(images)
        ):
            order.images = images  # a list, or what reads one as it goes
        else:
            order.problems.append(wrong("images", images))
        if body.pop("matrix", None) is not None:
            order.problems.append(Problem("invalid_value", "Give images or matrix, not both.", "matrix"))
        return order

    def head(self, model: type[M], rest: dict[str, Any], default: M) -> M:
        """The job's options as that model. If they are invalid, their problems are kept and `default` is returned."""
        try:
            return model.model_validate(rest)
        except ValidationError as error:
            self.problems += requests.problems(error, rest)
            return default

    def fill(self, submission: submissions.Submission) -> None:
        """Adds every request to the submission, until it has as many problems as are reported."""
        for problem in self.problems:
            submission.refuse(problem)
        if self.matrix is not None:
            submission.add_matrix(self.matrix)
        for index, value in enumerate(self.images):
            if submission.has_too_many_problems:
                return
            submission.add(index, value, f"images[{index}].")


def wrong(name: str, found: object) -> Problem:
    code = "missing_field" if found is None else "invalid_value" if found == [] else "wrong_type"
    shown = "missing" if found is None else "empty" if found == [] else strict_json.describe(found)
    return Problem(code, f"{name} is {shown}; it must be {requests.ALLOWED[name]}.", name)
