"""Fetches a file from an address that a user named, to disk: bounded in size and time, also after it is unpacked.

Redirects are followed, each checked like the first address. A file that changes while it is read is read again.
"""

import hashlib
import http.client
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from services.core.fetching.connections import Rules, exchange
from services.core.fetching.errors import FetchFailed
from services.core.fetching.targets import Target

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_READINGS = 3  # of a file that seems to change: servers behind one name may name the same file differently
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched: `etag` and `modified` are the server's, empty if it sends none."""

    size: int
    sha256: bytes
    etag: str = ""
    modified: str = ""


def fetch(url: str, file: IO[bytes], rules: Rules, *, etag: str = "", modified: str = "") -> Fetched | None:
    """Writes what is there into `file`. None: it is still what it was with these `etag` and `modified`.
    Raises FetchFailed."""
    deadline = time.monotonic() + rules.seconds
    asked = {"If-None-Match": etag} if etag else {"If-Modified-Since": modified} if modified else {}
    before = b""
    for _ in range(_READINGS):
        file.seek(0)
        file.truncate()
        found, target = _fetch(Target.parse(url, http=rules.http), file, rules, deadline, asked)
        if found is None or found.sha256 == before or not _has_changed(target, found, rules, deadline):
            return found
        before = found.sha256
    raise FetchFailed("changed", f"What {target.host} has there changes while it is read.", again=True)


def unpacked(blocks: Iterator[bytes], most: int, host: str) -> Iterator[bytes]:
    """The content of gzip, member by member, in blocks of bounded size. Raises FetchFailed past `most` bytes."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    size, is_begun = 0, False
    try:
        for block in blocks:
            rest = block
            while rest:
                if unpacker.eof:
                    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
                is_begun = True
                made = unpacker.decompress(rest, _BLOCK)
                rest = unpacker.unconsumed_tail or (unpacker.unused_data if unpacker.eof else b"")
                size += len(made)
                if size > most:
                    raise FetchFailed("too_large", f"What {host} has there unpacks to more than {most:,} bytes.")
                yield made
    except zlib.error:
        raise FetchFailed("bad_answer", f"What {host} has there is not gzip.") from None
    if is_begun and not unpacker.eof:
        raise FetchFailed("bad_answer", f"What {host} has there ends too early.", again=True)


def _fetch(
    target: Target, file: IO[bytes], rules: Rules, deadline: float, asked: Mapping[str, str]
) -> tuple[Fetched | None, Target]:
    for _ in range(_MOST_REDIRECTS + 1):
        headers = {"Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "presswork", **asked}
        with exchange(target, rules, deadline, headers=headers) as answer:
            if answer.status == 304 and asked:
                return None, target
            if answer.status == 200:
                return _stored(answer, target, file, rules), target
            if answer.status not in _REDIRECTS:
                again = answer.status in (408, 429) or answer.status >= 500
                raise FetchFailed("bad_status", f"{target.host} answers with status {answer.status}.", again=again)
            location = answer.headers.get("Location")
        if not location:
            raise FetchFailed("bad_answer", f"{target.host} redirects to nowhere.")
        target = target.redirected(location, http=rules.http)
    raise FetchFailed("bad_answer", f"{target.host} redirects more than {_MOST_REDIRECTS} times.")


def _stored(answer: http.client.HTTPResponse, target: Target, file: IO[bytes], rules: Rules) -> Fetched:
    if (answer.length or 0) > rules.max_bytes:
        raise FetchFailed("too_large", f"What {target.host} has there is larger than {rules.max_bytes:,} bytes.")
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise FetchFailed("bad_answer", f"{target.host} sends an encoding that was not asked for.")
    blocks = _blocks(answer, target, rules.max_bytes)
    digest, size = hashlib.sha256(), 0
    for block in blocks if encoding == "identity" else unpacked(blocks, rules.max_bytes, target.host):
        digest.update(block)
        size += len(block)
        file.write(block)
    file.flush()
    etag, modified = (answer.headers.get(name, "")[:512] for name in ("ETag", "Last-Modified"))
    return Fetched(size, digest.digest(), etag, modified)


def _blocks(answer: http.client.HTTPResponse, target: Target, most: int) -> Iterator[bytes]:
    size = 0
    while block := answer.read1(_BLOCK):
        size += len(block)
        if size > most:
            raise FetchFailed("too_large", f"What {target.host} has there is larger than {most:,} bytes.")
        yield block
    if answer.length:
        raise FetchFailed("bad_answer", f"The answer of {target.host} ends too early.", again=True)


def _has_changed(target: Target, found: Fetched, rules: Rules, deadline: float) -> bool:
    """Whether the server now names another file. One that names none, or takes no HEAD, is believed."""
    if not found.etag and not found.modified:
        return False
    headers = {"Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "presswork"}
    with exchange(target, rules, deadline, "HEAD", headers) as answer:
        if answer.status != 200:
            return False
        now = tuple(answer.headers.get(name, "")[:512] for name in ("ETag", "Last-Modified"))
    return any(
        given and before and given != before for given, before in zip(now, (found.etag, found.modified), strict=True)
    )
