"""The chain of an audit trail's records: how each is linked to the one before, and what stands around them in a file.

A record's hash is the sha256 of the hash before, as 32 bytes, and the record's canonical JSON: UTF-8, names sorted, no
spaces. Before the first record of a chain stand 32 zero bytes. Each tenant has a chain of its own, and so has the
system, whose `tenant` is null.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

GENESIS = bytes(32)
SYSTEM = "system"  # in place of a tenant, in what is said about its chain
EVERY = "*"  # in place of a tenant: all of them
LINKS = ("previous", "hash")  # the fields of an exported record that are not hashed


def canonical(given: Mapping[str, Any]) -> bytes:
    """The one way to write it as JSON."""
    return json.dumps(given, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def link(previous: bytes, record: Mapping[str, Any]) -> bytes:
    """The hash of a record behind the one with the hash `previous`."""
    hashed = {name: value for name, value in record.items() if name not in LINKS}
    return hashlib.sha256(previous + canonical(hashed)).digest()


def heading(*, is_filtered: bool, until: str | None = None, tenant: str | None = None) -> dict[str, Any]:
    """The first line of an export. `is_filtered`: of one actor or one kind of event, so that records between others
    are left out. `until`: the moment that it was asked to end at; None: it goes to the end of the trail. `tenant`: what
    was asked for; None: that of the key."""
    return {"begin": True, "filtered": is_filtered, "until": until, "tenant": tenant}


class Summary:
    """The last line of an export: without it, an export that was cut short would look whole."""

    def __init__(self) -> None:
        self.records, self.faults = 0, 0
        self._last: dict[str, dict[str, Any]] = {}
        self._chains: dict[str, dict[str, Any]] | None = None  # a server of the release before tells none

    def end(self, chains: dict[str, dict[str, Any]] | None) -> None:
        """Where the chains end in the database, whatever was left out of the records."""
        self._chains = chains

    def add(self, line: Mapping[str, Any]) -> None:
        """A record, or a fault that the server found."""
        if "fault" in line:
            self.faults += 1
            return
        self.records += 1
        self._last[line["tenant"] or SYSTEM] = {"n": line["n"], "hash": line["hash"]}

    def line(self) -> dict[str, Any]:
        chains = {} if self._chains is None else {"chains": self._chains}
        return {"end": True, "records": self.records, "faults": self.faults, "last": self._last, **chains}
