"""Fetches a file from an address that a user named, to disk: bounded in size and time, also after it is unpacked.

Redirects are followed, each checked like the first address. A file that changes while it is read is read again. What a
server said of a file is a condition for the address that said it alone: behind another one, the same words may name
another file.
"""

import hashlib
import http.client
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO

from services.core.fetching.connections import Rules, exchange
from services.core.fetching.errors import FetchFailed
from services.core.fetching.targets import Target

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_READINGS = 3  # of a file that seems to change: servers behind one name may name the same file differently
_BLOCK = 1 << 18
_OF_ADDRESS = re.compile(r"(.*) of ([0-9a-f]{32})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched: `etag` and `modified` are the server's, empty if it sends none. Behind a redirect, each ends
    with a digest of the address that it is of."""

    size: int
    sha256: bytes
    etag: str = ""
    modified: str = ""


def fetch(url: str, file: IO[bytes], rules: Rules, *, etag: str = "", modified: str = "") -> Fetched | None:
    """Writes what is there into `file`. None: it is still what it was with these `etag` and `modified`.
    Raises FetchFailed."""
    deadline = time.monotonic() + rules.seconds
    first = Target.parse(url, http=rules.http)
    asked = {"If-None-Match": etag} if etag else {"If-Modified-Since": modified} if modified else {}
    before = b""
    for _ in range(_READINGS):
        file.seek(0)
        file.truncate()
        found, target = _fetch(first, file, rules, deadline, asked)
        if found is None:
            return None
        if found.sha256 == before or not _has_changed(target, found, rules, deadline):
            return found if target == first else _marked(found, target)
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
    first: Target, file: IO[bytes], rules: Rules, deadline: float, asked: Mapping[str, str]
) -> tuple[Fetched | None, Target]:
    target = first
    for _ in range(_MOST_REDIRECTS + 1):
        condition = _condition(asked, target, first)
        headers = {"Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "presswork", **condition}
        with exchange(target, rules, deadline, headers=headers) as answer:
            if answer.status == 304 and condition:
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


def _marked(found: Fetched, target: Target) -> Fetched:
    etag, modified = (f"{said} of {_digest(target)}" if said else "" for said in (found.etag, found.modified))
    return replace(found, etag=etag, modified=modified)


def _condition(asked: Mapping[str, str], target: Target, first: Target) -> dict[str, str]:
    """What is asked of this address: what it said itself, or nothing."""
    found = {}
    for name, said in asked.items():
        marked = _OF_ADDRESS.fullmatch(said)
        if marked is None and target == first:
            found[name] = said
        elif marked is not None and marked[2] == _digest(target):
            found[name] = marked[1]
    return found


def _digest(target: Target) -> str:
    return hashlib.blake2b(target.url.encode(), digest_size=16).hexdigest()


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
