"""Checks exported files of the audit trail: each line against its hash, its neighbours, and earlier exports."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.cli.audit_known import Known
from services.core.model import audit_chain

_FIELDS = {
    "tenant", "n", "seq", "at", "actor", "event", "subject_type", "subject", "data", *audit_chain.LINKS,
}  # fmt: skip
_DELETED = ("tenant.delete_requested", "tenant.deleted")
_STEP = 1_000


class _Trouble(Exception):
    """A line is not what was exported."""


@dataclass(slots=True)
class Checked:
    """What a file holds. `trouble` is what is wrong with `line`, the first line that is not as it was exported.
    `is_open`: it goes to the end of the trail. `is_of_all`: it is of all tenants. `chains`: where their chains ended in
    the database, if it says so."""

    path: Path
    line: int = 0
    records: int = 0
    is_filtered: bool = False
    is_open: bool = False
    is_of_all: bool = False
    chains: dict[str, tuple[int, bytes]] | None = None
    trouble: str | None = None
    last: dict[str, tuple[int, str]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        last = {tenant: {"n": place, "hash": hashed} for tenant, (place, hashed) in self.last.items()}
        return {
            "file": str(self.path), "unchanged": self.trouble is None, "records": self.records, "last": last,
            "line": self.line if self.trouble else None, "trouble": self.trouble,
        }  # fmt: skip


def check(path: Path, known: Known, tell: Callable[[int], object], *, keeps: bool = True) -> Checked:
    """Reads the file to the first line that is wrong. `known` has the records of the files before, and with `keeps`
    gets those of this one. Memory goes by the number of tenants. Raises OSError if there is no such file."""
    found = Checked(path)
    known.begin(str(path))
    lines = _lines(path)
    try:
        found.line, end = 1, None
        _begin(found, next(lines, b""))
        for line in lines:
            found.line += 1
            if end is not None:
                raise _Trouble("it stands behind the last line, and was inserted")
            if found.line % _STEP == 0:
                tell(_STEP)
            given, is_exact = _parsed(line)
            end = _add(found, given, known, keeps=keeps)
            if not is_exact:
                raise _Trouble("it was changed: it is not written as it was exported")
        if end is None:
            found.line += 1
            raise _Trouble("the last line, with the count, is missing: the file was cut short")
        _end(found, known, keeps=keeps)
    except _Trouble as trouble:
        found.trouble = str(trouble)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        found.line, found.trouble = found.line + 1, "the file is damaged, or was cut short"
    return found


def _add(found: Checked, line: dict[str, Any], known: Known, *, keeps: bool) -> dict[str, Any] | None:
    """Takes one line; returns it if it is the last one."""
    if "end" in line:
        if line.get("records") != found.records or line.get("last") != found.document()["last"]:
            raise _Trouble("the count or the hashes are not those of the lines before: some were dropped or inserted")
        found.chains = _chains(line.get("chains"))
        return line
    if "fault" in line:
        which = f"records {line.get('first')} to {line.get('last')} of {line.get('tenant') or 'system'}"
        raise _Trouble(f"the server found that {which} in the database no longer were what was sealed")
    if set(line) != _FIELDS or not isinstance(line["n"], int) or isinstance(line["n"], bool):
        raise _Trouble("it is no record of an audit trail")
    if not isinstance(line["tenant"], str | None):
        raise _Trouble("it is no record of an audit trail")
    tenant, place = line["tenant"] or audit_chain.SYSTEM, line["n"]
    try:
        previous, hashed = bytes.fromhex(line["previous"]), bytes.fromhex(line["hash"])
    except (TypeError, ValueError):
        raise _Trouble("it is no record of an audit trail") from None
    if audit_chain.link(previous, line) != hashed:
        raise _Trouble("it was changed: its hash is not that of its words")
    _compare(found, tenant, place, previous)
    if found.last.get(tenant, (0, ""))[0] != place - 1:
        _agree(known, tenant, place - 1, previous)
    _agree(known, tenant, place, hashed)
    if keeps:
        known.keep(tenant, place, hashed)
    if line["event"] in _DELETED and line["subject_type"] == "tenant":
        known.deleted.add(str(line["subject"]))
    found.last[tenant] = place, line["hash"]
    found.records += 1
    return None


def _agree(known: Known, tenant: str, place: int, hashed: bytes) -> None:
    before = known.hash_of(tenant, place)
    if before is not None and before[0] != hashed:
        raise _Trouble(f"record {place:,} of {tenant} is another one than in {before[1]}")


def _end(found: Checked, known: Known, *, keeps: bool) -> None:
    """No earlier export may have more of a chain than there was at this one, but of a tenant that was deleted."""
    ends = {tenant: place for tenant, (place, _) in found.last.items()}
    for tenant, (place, hashed) in (found.chains or {}).items():
        if ends.get(tenant) == place and found.last[tenant][1] != hashed.hex():
            raise _Trouble(f"record {place:,} of {tenant} is said to be the chain's end, and has another hash")
        if place:
            _agree(known, tenant, place, hashed)
        ends[tenant] = max(ends.get(tenant, 0), place)
    for tenant, (before, path) in known.ends.items():
        place = ends.get(tenant, 0)
        if place >= before or tenant in known.deleted or not _tells_of(found, tenant):
            continue
        if place:
            raise _Trouble(
                f"the trail of {tenant} ends at record {place:,}, and {path} has record {before:,}: its end was cut "
                "off, unless that file is the later export"
            )
        raise _Trouble(
            f"nothing is left of the trail of {tenant}, and {path} has record {before:,}; no record says that the "
            "tenant was deleted: it was taken away, unless that file is the later export"
        )
    for tenant, place in ends.items() if keeps else ():
        known.end(tenant, place)
        if found.chains and place == found.chains.get(tenant, (0, b""))[0] > 0:
            known.keep(tenant, place, found.chains[tenant][1])


def _tells_of(found: Checked, tenant: str) -> bool:
    """Whether the file says where the tenant's chain ended, also if it says that by naming no such chain."""
    if found.chains is None:  # of the release before
        return tenant in found.last and found.is_open and not found.is_filtered
    return found.is_of_all or tenant in found.chains


def _chains(given: Any) -> dict[str, tuple[int, bytes]] | None:
    try:
        return None if given is None else {
            tenant: (int(end["n"]), bytes.fromhex(end["hash"])) for tenant, end in given.items()
        }  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _Trouble("it does not say where the chains ended: it was changed") from None


def _compare(found: Checked, tenant: str, place: int, previous: bytes) -> None:
    """With the record before it in the file."""
    if tenant not in found.last:
        if place == 1 and previous != audit_chain.GENESIS:
            raise _Trouble("it is said to be the first record, and follows another one")
        return
    before, hashed = found.last[tenant]
    if place <= before:
        raise _Trouble(f"it was inserted or moved: record {place:,} stands behind record {before:,}")
    if place > before + 1 and not found.is_filtered:
        raise _Trouble(f"before it {_places(before + 1, place - 1)} dropped")
    if place == before + 1 and previous.hex() != hashed:
        raise _Trouble(f"it does not follow the record before it: record {before:,} was changed or replaced")


def _places(first: int, last: int) -> str:
    return f"record {first:,} was" if first == last else f"records {first:,} to {last:,} were"


def _begin(found: Checked, line: bytes) -> None:
    """Reads the first line: whether records between others are left out, and whether it goes to the trail's end."""
    first, is_exact = _parsed(line) if line else ({}, True)
    if first.get("begin") is not True or not isinstance(first.get("filtered"), bool):
        raise _Trouble("it is not the first line of an exported audit trail")
    if not is_exact:
        raise _Trouble("it was changed: it is not written as it was exported")
    found.is_filtered, found.is_open = first["filtered"], first.get("until", "") is None
    found.is_of_all = first.get("tenant") == audit_chain.EVERY


def _parsed(line: bytes) -> tuple[dict[str, Any], bool]:
    """The object, and whether it is written as it was exported: one of two fields of a name would hide the other."""
    try:
        found = json.loads(line)
        is_exact = isinstance(found, dict) and audit_chain.canonical(found) == line.rstrip(b"\r\n")
    except (ValueError, RecursionError):
        raise _Trouble("it is no JSON") from None
    if not isinstance(found, dict):
        raise _Trouble("it is no record of an audit trail")
    return found, is_exact


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        yield from file
