"""Sends a small message to an address that a user named, and reads the beginning of the answer.

A redirect is an answer like any other: nothing is sent to where it leads.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from services.core.fetching import targets
from services.core.fetching.connections import Rules, exchange
from services.core.fetching.errors import FetchFailed
from services.core.fetching.targets import Target


@dataclass(frozen=True, slots=True)
class Answer:
    """`beginning`: its first bytes, none if they came from an address that is not public. `retry_after`: the header."""

    status: int
    beginning: bytes = b""
    retry_after: str = ""


def post(url: str, body: bytes, headers: Mapping[str, str], rules: Rules) -> Answer:
    """POSTs within `rules.seconds` in all. Reads no more than `rules.max_bytes` of the answer's body, which need not
    come to its end. Raises FetchFailed if there is no answer."""
    deadline = time.monotonic() + rules.seconds
    target = Target.parse(url, http=rules.http)
    found: Answer | None = None
    asked = {"Connection": "close", **headers}
    peers: list[str] = []
    beginning = b""
    try:
        with exchange(target, rules, deadline, "POST", asked, body, peers.append) as answer:
            found = Answer(answer.status, retry_after=answer.headers.get("Retry-After", "").strip()[:100])
            while len(beginning) < rules.max_bytes and (more := answer.read1(rules.max_bytes - len(beginning))):
                beginning += more
    except FetchFailed:
        if found is None:
            raise
    assert found is not None
    if not all(targets.is_public(targets.carried(ip_address(peer.partition("%")[0]))) for peer in peers):
        beginning = b""
    return Answer(found.status, beginning, found.retry_after)
