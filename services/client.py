"""A thin typed client of the HTTP API. It retries what is safe to send again, and only that.

A submission is sent under an Idempotency-Key, so sending it again after a lost answer makes no second job.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict

import httpx

PAGE = 1000
_AGAIN = {502, 503, 504}
_DIRECT = {"all://127.0.0.1": None, "all://localhost": None}  # whatever proxies the environment names
_BUSY = "idempotency_key_in_use"


class ImageRequest(TypedDict):
    prompt: str
    negative_prompt: NotRequired[str]
    seed: NotRequired[int]
    size: NotRequired[str]
    num_inference_steps: NotRequired[int]
    guidance_scale: NotRequired[float]
    n: NotRequired[int]
    custom_id: NotRequired[str]
    output_format: NotRequired[str]
    model: NotRequired[str]


class Counts(TypedDict):
    total: int
    queued: int
    rendering: int
    done: int
    failed: int
    cancelled: int


class Job(TypedDict):
    id: str
    object: str
    status: str
    paused: bool
    priority: str
    counts: Counts
    labels: dict[str, str]
    created_at: str
    started_at: str | None
    cancel_requested_at: str | None
    finished_at: str | None
    rate: float
    eta_seconds: float | None
    as_of: str


class ImageError(TypedDict):
    code: str
    message: str


class Image(TypedDict):
    index: int
    custom_id: str | None
    status: str
    seed: int
    seed_string: str
    output_format: str
    sha256: str | None
    bytes: int | None
    url: str | None
    truncated: bool | None
    flagged: bool | None
    unknown_words: list[str] | None
    reproducibility_class: str | None
    versions: str | None
    device: str | None
    error: ImageError | None


class ClientError(Exception):
    """The server refused, or could not be reached (`status` 0).

    `errors` are a submission's problems, each with its line or index, param, code and message.
    """

    def __init__(self, status: int, code: str, message: str, errors: list[dict[str, Any]] | None = None) -> None:
        self.status, self.code, self.message, self.errors = status, code, message, errors or []
        super().__init__(message)


class Client:
    """Safe between threads. `timeout` is for one exchange, `patience` for all attempts at one call, in seconds."""

    def __init__(self, url: str, key: str, timeout: float = 60.0, patience: float = 30.0) -> None:
        self._patience = patience
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout, mounts=_DIRECT)
        # Knows no key: an object's address is its own permit.
        self._store = httpx.Client(timeout=timeout, mounts=_DIRECT)

    def close(self) -> None:
        self._http.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, images: Iterable[ImageRequest], *, idempotency_key: str | None = None, **head: Any) -> Job:
        """`head`: defaults, priority, labels."""
        body = json.dumps({"images": list(images), **head}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or _new_key()}
        return self._job(lambda: self._http.post("/v1/jobs", content=body, headers=headers))

    def submit_file(self, path: str | Path, *, priority: str | None = None, idempotency_key: str | None = None) -> Job:
        """A file with one request object a line; it is streamed, whatever its size."""
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": idempotency_key or _new_key()}
        parameters = {} if priority is None else {"priority": priority}

        def send() -> httpx.Response:
            with Path(path).open("rb") as file:
                return self._http.post("/v1/jobs", content=file, headers=headers, params=parameters)

        return self._job(send)

    def ready(self) -> bool:
        """Whether a submission would be accepted right now."""
        try:
            return self._http.get("/readyz", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def job(self, job_id: str) -> Job:
        return self._job(lambda: self._http.get(f"/v1/jobs/{job_id}"))

    def jobs(self) -> Iterator[Job]:
        """All jobs, newest first, page by page."""
        return self._pages("/v1/jobs", {})

    def images(self, job_id: str, status: str | None = None) -> Iterator[Image]:
        """The job's images in order, page by page."""
        return self._pages(f"/v1/jobs/{job_id}/images", {} if status is None else {"status": status})

    def download(self, job_id: str, index: int) -> bytes:
        """The stored file."""
        found = self._attempt(lambda: self._http.get(f"/v1/jobs/{job_id}/images/{index}/content"))
        return self._attempt(lambda: self._store.get(found.headers["Location"])).content

    def cancel(self, job_id: str) -> Job:
        return self._job(lambda: self._http.post(f"/v1/jobs/{job_id}/cancel"))

    def _pages(self, path: str, parameters: dict[str, Any]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            asked = parameters | {"limit": PAGE} | ({} if cursor is None else {"cursor": cursor})
            page = self._attempt(partial(self._http.get, path, params=asked)).json()
            yield from page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _job(self, send: Callable[[], httpx.Response]) -> Job:
        found: Job = self._attempt(send).json()
        return found

    def _attempt(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Sends until it is answered for good, or patience is over."""
        deadline = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                answer = send()
            except httpx.TransportError as error:
                refusal = ClientError(0, "unreachable", f"{error.request.url.host} cannot be reached: {error}")
            else:
                if answer.status_code < 400:
                    return answer
                refusal = _refusal(answer)
                if answer.status_code not in _AGAIN and refusal.code != _BUSY:
                    raise refusal
                pause = max(pause, _retry_after(answer))
            if time.monotonic() + pause > deadline:
                raise refusal
            time.sleep(pause)
            pause = min(pause * 2, 5.0)


def _refusal(answer: httpx.Response) -> ClientError:
    try:
        error = answer.json()["error"]
        return ClientError(answer.status_code, error["code"], error["message"], error.get("errors"))
    except (ValueError, KeyError, TypeError):
        return ClientError(answer.status_code, "unexpected_answer", f"The server answered {answer.status_code}.")


def _retry_after(answer: httpx.Response) -> float:
    value = answer.headers.get("Retry-After", "")
    return min(float(value), 30.0) if value.isascii() and value.isdigit() else 0.0


def _new_key() -> str:
    return secrets.token_urlsafe(24)
