"""Sends requests, retries what is safe to repeat, and turns error answers into ClientError."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx

_RETRIED = {429, 502, 503, 504}
_LOOPBACK = ("127.0.0.1", "[::1]", "localhost", "*.localhost")
_DIRECT = {f"all://{host}": None for host in _LOOPBACK}  # no proxy for this machine, whatever the environment says
_BUSY = "idempotency_key_in_use"
_MIN_RATE = 1 << 10  # bytes a second of a download, once it was waited for as long as for an answer
_SILENCE_SECONDS = 45.0  # a server that is there says something every fifteen


class ClientError(Exception):
    """The server refused, or could not be reached (`status` 0).

    `errors` are a submission's problems, each with its line or index, param, code and message.
    """

    def __init__(self, status: int, code: str, message: str, errors: list[dict[str, Any]] | None = None) -> None:
        self.status, self.code, self.message, self.errors = status, code, message, errors or []
        super().__init__(message)


class _TooSlow(httpx.ReadTimeout):
    """What comes is next to nothing, so that it would never end."""


class Transport:
    """Two connections: one to the API with the key, one to the store without."""

    def __init__(
        self, url: str, key: str, timeout: float, patience: float, on_wait: Callable[[ClientError], None] | None
    ) -> None:
        self._patience, self._on_wait = patience, on_wait
        headers = {"Authorization": f"Bearer {key}"}
        trust = httpx.create_ssl_context()  # the certificates are read once for both: it takes longer than all the rest
        self.http = httpx.Client(
            base_url=url.rstrip("/"), headers=headers, timeout=timeout, mounts=_DIRECT, verify=trust
        )
        # Without the key: an object's URL is signed, or redirects to one that is.
        self.store = httpx.Client(timeout=timeout, mounts=_DIRECT, verify=trust, follow_redirects=True)

    def close(self) -> None:
        self.http.close()
        self.store.close()

    def call(self, method: str, path: str, **parts: Any) -> Any:
        """The answer's JSON, or None. The request must be safe to repeat."""
        answer = self.attempt(lambda: self.http.request(method, path, **parts))
        return answer.json() if answer.content else None

    def pages(self, path: str, parameters: dict[str, Any], limit: int | None = None) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            asked = (
                parameters
                | ({} if limit is None else {"limit": limit})
                | ({} if cursor is None else {"cursor": cursor})
            )
            page = self.attempt(partial(self.http.get, path, params=asked)).json()
            yield from page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def lines(self, path: str, parameters: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
        """The lines of a list that comes as JSON Lines, page by page; the last line of a page says where the next
        begins, and what that of the last page says besides comes last. Raises ClientError, also for a page that was cut
        short."""
        cursor: str | None = None
        while True:
            asked = parameters | {"limit": limit} | ({} if cursor is None else {"cursor": cursor})
            page = [json.loads(line) for line in self.attempt(partial(self.http.get, path, params=asked)).iter_lines()]
            if not page or "next_cursor" not in page[-1]:
                raise ClientError(0, "unexpected_answer", "The server's answer ends before its last line.")
            yield from page[:-1]
            cursor = page[-1].pop("next_cursor")
            if cursor is None:
                if page[-1]:
                    yield page[-1]
                return

    def messages(self, path: str) -> Iterator[tuple[str, Any]]:
        """The messages of a stream of events, kind and data, until the stream ends or is cut off; none from
        a server that has no streams. Raises ClientError if there is no answer."""
        timeout = httpx.Timeout(self.http.timeout.connect, read=_SILENCE_SECONDS)
        headers = {"Accept": "text/event-stream"}

        def send() -> httpx.Response:
            answer = self.http.send(self.http.build_request("GET", path, headers=headers, timeout=timeout), stream=True)
            if answer.status_code >= 400:
                answer.read()
            return answer

        with closing(self.attempt(send)) as answer, suppress(httpx.TransportError):
            kind, data = "", ""
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    data = value
                elif not line and kind:
                    yield kind, json.loads(data)
                    kind = ""

    def attempt(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Sends until the answer is final or the patience is over. Raises ClientError."""
        deadline = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                answer = send()
            except httpx.TransportError as error:
                refusal = _outage(error)
            else:
                if answer.status_code < 400:
                    return answer
                refusal = _refusal(answer)
                if answer.status_code not in _RETRIED and refusal.code != _BUSY:
                    raise refusal
                pause = max(pause, retry_after(answer))
            if time.monotonic() + pause > deadline:
                raise refusal
            if self._on_wait is not None:
                self._on_wait(refusal)
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    def fetch(self, url: str) -> bytes:
        """The bytes of an object in the store."""
        found = bytearray()

        def send() -> httpx.Response:
            found.clear()
            with self.store.stream("GET", url) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    return answer
                for data in self._steadily(answer):
                    found.extend(data)
                return answer

        self.attempt(send)
        return bytes(found)

    def blocks(self, url: str, size: int, begin: int = 0) -> Iterator[bytes]:
        """The bytes of an object of `size` bytes in the store from `begin` on, as they come. Where a connection breaks
        another goes on. Raises ClientError."""
        have, broken = begin, 0.0
        while have < size:

            def send(have: int = have) -> httpx.Response:
                headers = {"Range": f"bytes={have}-"} if have else {}
                answer = self.store.send(self.store.build_request("GET", url, headers=headers), stream=True)
                if answer.status_code >= 400:
                    answer.read()
                return answer

            try:
                with closing(self.attempt(send)) as answer:
                    skip = have if answer.status_code != 206 else 0
                    for data in self._steadily(answer):
                        fresh = data[skip:]
                        skip -= len(data) - len(fresh)
                        have += len(fresh)
                        if fresh:
                            broken = 0.0
                            yield fresh
                    return
            except httpx.TransportError as error:
                broken = broken or time.monotonic()
                if time.monotonic() - broken > self._patience:
                    raise _outage(error) from None
                if self._on_wait is not None:
                    self._on_wait(_outage(error))
                time.sleep(0.25)

    def save(
        self,
        url: str,
        path: Path,
        sha256: str,
        on_bytes: Callable[[int], None] | None = None,
        *,
        part: Path | None = None,
    ) -> None:
        """Fetches a file from the store. A partial file, `NAME.part` unless given, is resumed.

        Raises ClientError if the store refuses, or if the sha256 does not match; then the partial file is deleted.
        """
        part = part or path.with_name(f"{path.name}.part")

        def send() -> httpx.Response:
            have = part.stat().st_size if part.exists() else 0
            headers = {"Range": f"bytes={have}-"} if have else {}
            with self.store.stream("GET", url, headers=headers) as answer:
                if answer.status_code == 416:  # the part is complete; the sha256 is checked below
                    return httpx.Response(206, request=answer.request)
                if answer.status_code >= 400:
                    answer.read()
                    return answer
                with part.open("ab" if answer.status_code == 206 else "wb") as file:
                    for data in self._steadily(answer):
                        file.write(data)
                        if on_bytes is not None:
                            on_bytes(len(data))
                return answer

        self.attempt(send)
        if file_sha256(part) != sha256:
            part.unlink()
            raise ClientError(0, "damaged", f"{path.name} does not match its sha256; fetch it again.")
        part.replace(path)

    def _steadily(self, answer: httpx.Response) -> Iterator[bytes]:
        """The body as it comes. Raises _TooSlow if next to nothing comes for as long as an answer is waited for."""
        patience = self.store.timeout.read or math.inf
        pieces = answer.iter_bytes()
        waited, taken = 0.0, 0
        while True:
            began = time.monotonic()
            data = next(pieces, None)
            if data is None:
                return
            waited += time.monotonic() - began
            taken += len(data)
            if waited > patience:
                if taken < waited * _MIN_RATE:
                    raise _TooSlow(f"fewer than {_MIN_RATE:,} bytes came in a second", request=answer.request)
                waited, taken = 0.0, 0
            yield data


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _outage(error: httpx.TransportError) -> ClientError:
    host = error.request.url.netloc.decode("ascii", "replace")
    if isinstance(error, _TooSlow):
        return ClientError(0, "too_slow", f"{host} is too slow: {error}")
    return ClientError(0, "unreachable", f"{host} cannot be reached: {str(error).rstrip('.') or 'no answer'}")


def _refusal(answer: httpx.Response) -> ClientError:
    try:
        error = answer.json()["error"]
        return ClientError(answer.status_code, error["code"], error["message"], error.get("errors"))
    except (ValueError, KeyError, TypeError):
        message = f"{answer.request.url.host} answered {answer.status_code}, and not as Presswork does."
        return ClientError(answer.status_code, "unexpected_answer", message)


def retry_after(answer: httpx.Response) -> float:
    """For how many seconds the server wants to be left alone."""
    value = answer.headers.get("Retry-After", "")
    return min(float(value), 30.0) if value.isascii() and value.isdigit() else 0.0
