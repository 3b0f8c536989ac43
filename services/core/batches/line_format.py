"""The formats of the stock `openai` client: a request's body and line, and a result's entry and line.

Bodies of `images/generations` have fields for other systems' models. A value that asks for nothing (null, "auto") is
accepted. A value that asks for something Presswork does not do is refused, so that no client believes it was done.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from services.core.batches.results import Request, Stored
from services.core.files import pictures
from services.core.model import body as bodies
from services.core.model import ids, strict_json
from services.core.model.errors import NEVER_RETRIED, PressworkError, Problem
from services.core.storage import signed_urls

ENDPOINT = "/v1/images/generations"
IMAGES_PER_REQUEST = 10
LINE_LIMIT = 64 << 10
RESPONSE_FORMATS = ("url", "b64_json")

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "stream": (False,),
    "partial_images": (0,),
    "input_fidelity": ("low",),
}
_INSTEAD = {
    "quality": "; num_inference_steps is what decides quality here",
    "background": "; pictures have no transparency",
    "stream": "; a job's progress can be polled",
    "partial_images": "; a job's progress can be polled",
    "input_fidelity": "; strength is what decides it here",
}
_UNUSED = ("user", "safety_identifier")  # texts that are meant for the sender's own use


class LineTooLong(PressworkError):
    """A line is too long."""

    def __init__(self, number: int, begin: bytes) -> None:
        self.number = number
        instead = pictures.instead(begin)
        super().__init__(f"The line is longer than {LINE_LIMIT:,} bytes, which is all a line may have{instead}.")


@dataclass(frozen=True, slots=True)
class Body:
    """A body as the fields of an `ImageRequest`. `response_format` None: not given."""

    fields: dict[str, Any]
    response_format: str | None


def error_code(code: str) -> str:
    """A code of ours as the stock client knows it."""
    return "content_policy_violation" if code in NEVER_RETRIED else code


def read_body(body: dict[str, Any], prefix: str, line: int | None = None) -> tuple[Body, list[Problem]]:
    """Checks and removes the fields that `ImageRequest` does not have. The caller checks the remaining ones."""
    fields = {name: value for name, value in body.items() if value is not None}
    problems: list[Problem] = []

    def refuse(name: str, found: object, allowed: str, code: str = "invalid_value") -> None:
        shown = strict_json.describe(found)
        problems.append(Problem(code, f"{prefix}{name} is {shown}; it must be {allowed}.", prefix + name, line))

    for name, neutral in _NEUTRAL.items():
        found: object = bodies.whole(fields.pop(name, neutral[0]))
        if found not in neutral or type(found) is not type(neutral[0]):
            words = " or ".join(json.dumps(value) for value in neutral)
            refuse(name, found, words + _INSTEAD.get(name, ""))
    for name in _UNUSED:
        label: object = fields.pop(name, "")
        if not isinstance(label, str) or len(label) > 512:
            refuse(name, label, "text of at most 512 characters")
    if fields.get("size") == "auto":
        del fields["size"]
    n = bodies.whole(fields.get("n", 1))
    if type(n) is not int or not 1 <= n <= IMAGES_PER_REQUEST:
        code = "invalid_value" if type(n) is int else "wrong_type"
        refuse("n", fields.pop("n"), f"a whole number from 1 to {IMAGES_PER_REQUEST}", code)
    response_format = fields.pop("response_format", None)
    if response_format is not None and response_format not in RESPONSE_FORMATS:
        refuse("response_format", response_format, '"url" or "b64_json"')
        response_format = None
    return Body(fields, response_format), problems


def read_line(text: bytes, number: int) -> tuple[dict[str, Any], list[Problem]]:
    """Translates one line of an input file to the value that `Submission.add` takes, including its custom_id."""
    try:
        value = strict_json.loads(text)
    except strict_json.BadJson as error:
        return {}, [error.problem(number)]
    if not isinstance(value, dict):
        found = strict_json.describe(value)
        return {}, [Problem("wrong_type", f"Found {found} where a request object is expected.", None, number)]
    problems: list[Problem] = []

    def refuse(code: str, param: str, found: object, allowed: str) -> None:
        shown = "missing" if code == "missing_field" else strict_json.describe(found)
        problems.append(Problem(code, f"{param} is {shown}; it must be {allowed}.", param, number))

    for name, allowed in (("method", "POST"), ("url", ENDPOINT)):
        if value.get(name) != allowed:
            refuse(
                "missing_field" if value.get(name) is None else "invalid_value", name, value.get(name), f'"{allowed}"'
            )
    if unknown := sorted(value.keys() - {"custom_id", "method", "url", "body"}):
        shown = strict_json.describe(unknown[0])
        problems.append(
            Problem("unknown_field", f"A line has custom_id, method, url and body; there is no {shown}.", None, number)
        )
    custom_id, body = value.get("custom_id"), value.get("body")
    if custom_id is None:
        refuse("missing_field", "custom_id", None, "a text that names the request in this file")
    if not isinstance(body, dict):
        refuse("missing_field" if body is None else "wrong_type", "body", body, "an object with the request's fields")
        return {}, problems
    if "custom_id" in body:
        problems.append(Problem("unknown_field", "custom_id belongs beside body, not in it.", "body.custom_id", number))
    read, more = read_body(body, "body.", number)
    problems += more
    if read.response_format == "b64_json":
        refuse("invalid_value", "body.response_format", "b64_json", '"url" in a file: the bytes are behind each url')
    return {**read.fields, "custom_id": custom_id}, problems


def split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines of a stream without their line ends. An empty last line is left out.

    Raises:
        LineTooLong: before the rest of the line is read.
    """
    rest, number = b"", 1
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if len(line) > LINE_LIMIT:
                raise LineTooLong(number, line[:LINE_LIMIT])
            yield line.removesuffix(b"\r")
            number += 1
        if len(rest) > LINE_LIMIT:
            raise LineTooLong(number, rest[:LINE_LIMIT])
    if rest:
        yield rest.removesuffix(b"\r")


def entry(image: Stored, job_id: int, base_url: str, secret: str) -> dict[str, Any]:
    """One stored image as an entry of a response's `data`. Its url is valid as long as the image exists."""
    seed = image.payload.seed_of(image.index)
    return {
        "url": signed_urls.image_url(base_url, secret, job_id, image.index),
        "b64_json": None,
        "revised_prompt": None,
        "seed": seed,
        "seed_string": str(seed),
        "sha256": image.sha256,
        "bytes": image.bytes,
        "output_format": image.payload.output_format,
        "model_revision": image.model_revision,
        "truncated": image.truncated,
        "flagged": image.flagged,
        "unknown_words": image.unknown_words,
        "reproducibility_class": image.reproducibility_class,
        "reused": image.reused,
        "job_id": ids.public_job(job_id),
        "index": image.index,
    }


def output_line(
    job_id: int, request: Request, data: list[dict[str, Any]], error: tuple[str, str] | None = None
) -> bytes:
    """A line of the output file; with an error (code, message), of the error file. `data` lists the successful
    images."""
    is_refused = False
    created = max((image.finished_at for image in request.stored), default=None)
    body: dict[str, Any] = {
        "created": int(created.timestamp()) if created else None,
        "data": data,
        "metadata": request.payload.metadata or {},
    }
    if error is not None:
        code, message = error_code(error[0]), error[1]
        is_refused = code != error[0]
        kind = "invalid_request_error" if is_refused else "server_error"
        body["error"] = {"code": code, "message": message, "type": kind, "param": None}
    line = {
        "id": f"{ids.public('batch_req_', job_id)}_{request.payload.index}",
        "custom_id": request.payload.custom_id,
        "response": {
            "status_code": 200 if error is None else 400 if is_refused else 500,
            "request_id": f"{ids.public('req_', job_id)}_{request.payload.index}",
            "body": body,
        },
        "error": None if error is None else {"code": code, "message": message},
    }
    return json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
