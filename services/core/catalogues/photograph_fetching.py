"""Brings the photographs of a run's items here: from addresses, by the rules of `fetching`, and as files of the tenant.

An address that is known is asked whether it is still the same. What is to be drawn becomes a file of purpose `vision`
that belongs to the run's job; until that job has it, the file has an end, so a plan that is cut off leaves none. A
photograph that cannot be had is one item's trouble. One that takes long holds up its own item, and no others.
"""

import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import IO, Self

from services.core.catalogues.photographs import Found, Photograph, Wanted
from services.core.catalogues.templates import Inapplicable
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.fetching.connections import Rules
from services.core.fetching.errors import FetchFailed
from services.core.fetching.fetch import Fetched, fetch
from services.core.fetching.targets import Target
from services.core.files import files, pictures
from services.core.files.pictures import InvalidPicture
from services.core.jobs import inputs
from services.core.jobs.inputs import Inputs
from services.core.model import ids, requests, strict_json
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

AT_ONCE = 16
SECONDS = 60.0  # for one photograph
MOST_FAILURES = 10  # of one host, in a row; then it is not asked again in this run
# A host whose answers took too long so many times in all, however many others came, gets less time for each; and then
# it is not asked again.
MOST_PATIENT, MOST_SLOW = 10, 1_000
HASTY_SECONDS = 15.0
KEPT_SECONDS = 7 * 86_400  # of a photograph that no job has: longer than any plan takes
_ADDRESS = ("https://", "http://")
_SECRET = re.compile(r"(//|\?).*", re.DOTALL)  # what an address may hold, even one that is none
_HIDDEN = r"\1..."
RULE = 'it must be an https address, the id of a file of purpose "vision", or an earlier image as "job_.../INDEX"'
_WATCH_SECONDS = 2.0  # between two looks at whether to go on


@dataclass(frozen=True, slots=True)
class _New:
    """A photograph that was stored: its file has no row yet."""

    file_id: int
    key: str
    size: int
    photograph: Photograph


class Photographs:
    """Finds photographs for one run of a tenant's catalogue. `job_id`: the job that the run will have; None: nothing
    will be drawn, so nothing is kept. `watch` is called all the time; it keeps the lease, and what it raises ends the
    search. A context manager: after it, nothing more is fetched."""

    def __init__(
        self, settings: Settings, store: ImageStore, lease: Lease, tenant_id: int, job_id: int | None,
        watch: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._store, self._lease, self._tenant_id, self._job_id = store, lease, tenant_id, job_id
        self._limits = settings.max_input_bytes, settings.max_input_pixels
        self._rules = Rules(
            settings.fetch_networks, settings.fetch_http, max_bytes=settings.max_input_bytes,
            seconds=min(SECONDS, settings.fetch_seconds),
        )  # fmt: skip
        self._hasty = replace(self._rules, seconds=min(HASTY_SECONDS, self._rules.seconds))
        self._inputs = Inputs(settings, lease.begin, store, tenant_id)
        self._watch = watch or lease.keep
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._running: dict[str, Future[Found | _New]] = {}  # by address
        self._failures = Counter[str]()  # by host, since its last answer
        self._slow = Counter[str]()  # by host
        self._too_slow: dict[str, str] = {}  # what was said of which address
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def find(self, wanted: Mapping[str, Wanted], left: int = 0) -> dict[str, Found]:
        """What each name leads to. Up to `left` addresses that take long may be missing; they are fetched on until they
        are asked for again."""
        found = self._named([name for name in wanted if requests.is_picture_id(name)])
        for name in wanted:
            if name not in found and not name.lower().startswith(_ADDRESS):
                message = f"image is {strict_json.describe(_SECRET.sub(_HIDDEN, name))}; {RULE}."
                found[name] = Inapplicable("invalid_image", message)
        return found | self._fetched({name: one for name, one in wanted.items() if name not in found}, left)

    def _named(self, names: list[str]) -> dict[str, Found]:
        there = self._inputs.find(names)
        return {
            name: Photograph(name, there[name].sha256)
            if name in there
            else Inapplicable("image_not_found", f"image is {strict_json.describe(name)}; it {inputs.MISSING}.")
            for name in names
        }

    def _fetched(self, wanted: Mapping[str, Wanted], left: int) -> dict[str, Found]:
        if not wanted:
            return {}
        new = {name: one for name, one in wanted.items() if name not in self._running}
        here = self._here(one.known for one in new.values())
        self._running |= {name: self._pool.submit(self._one, name, one, here) for name, one in new.items()}
        waiting = {self._running[name] for name in wanted}
        while len(waiting) > left:
            waiting = wait(waiting, timeout=_WATCH_SECONDS, return_when=FIRST_COMPLETED).not_done
            self._watch()
        ended = [name for name in wanted if self._running[name].done()]
        results = {name: self._running.pop(name).result() for name in ended}
        self._record([result for result in results.values() if isinstance(result, _New)])
        found = {name: one.photograph if isinstance(one, _New) else one for name, one in results.items()}
        return found | self._fetched(self._not_here(found, wanted), 0)

    def _not_here(self, found: Mapping[str, Found], wanted: Mapping[str, Wanted]) -> dict[str, Wanted]:
        """Those whose bytes are needed, and were not when their fetching began."""
        return {
            name: Wanted(one, is_drawn=True)
            for name, one in found.items()
            if isinstance(one, Photograph) and not one.image and wanted[name].is_drawn and self._job_id is not None
        }

    def _here(self, known: Iterable[Photograph | None]) -> set[str]:
        """The ids of those files that are still there."""
        numbers = [files.parse_id(one.image) for one in known if one is not None and one.image]
        with self._lease.begin() as connection:
            return {
                files.public_id(file.id)
                for file in files.of_ids(connection, self._tenant_id, numbers, inputs.PURPOSE)
            }  # fmt: skip

    def _one(self, address: str, wanted: Wanted, here: set[str]) -> Found | _New:
        known = wanted.known
        if known is not None and known.image not in here:
            known = replace(known, image="")
        is_known_enough = known is not None and (bool(known.image) or not wanted.is_drawn or self._job_id is None)
        with tempfile.TemporaryFile() as file:
            try:
                state = (known.etag, known.modified) if known is not None and is_known_enough else ("", "")
                fetched = self._asked(address, file, *state)
                if fetched is None:
                    assert known is not None
                    return known
                return self._kept(file, fetched, known, is_drawn=wanted.is_drawn)
            except FetchFailed as error:
                return Inapplicable("image_not_fetched", f"The photograph cannot be fetched: {error}")
            except InvalidPicture as error:
                return Inapplicable("invalid_image", f"The photograph cannot be used: {error}")

    def _asked(self, address: str, file: IO[bytes], etag: str, modified: str) -> Fetched | None:
        """None: it is what it was. A host that fails again and again is given up. Raises FetchFailed."""
        host = Target.parse(address, http=self._rules.http).host
        if (known := self._too_slow.get(address)) is not None:
            raise FetchFailed("too_slow", known, again=True)
        self._check(host)
        rules = self._rules if self._slow[host] < MOST_PATIENT else self._hasty
        try:
            found = fetch(address, file, rules, etag=etag, modified=modified)
        except FetchFailed as error:
            with self._lock:
                self._failures[host] = self._failures[host] + 1 if error.again else 0
                if error.code == "too_slow":
                    self._slow[host] += 1
                    self._too_slow[address] = str(error)
            raise
        with self._lock:
            self._failures[host] = 0
        return found

    def _check(self, host: str) -> None:
        """Raises FetchFailed: the host was given up."""
        why = ""
        if self._failures[host] >= MOST_FAILURES:
            why = f"failed {MOST_FAILURES} times in a row"
        elif self._slow[host] >= MOST_SLOW:
            why = f"took too long {MOST_SLOW:,} times"
        if why:
            raise FetchFailed("unreachable", f"{host} {why}, so it was not asked again in this run.", again=True)

    def _kept(
        self, file: IO[bytes], fetched: Fetched, known: Photograph | None, *, is_drawn: bool
    ) -> Photograph | _New:  # fmt: skip
        """What was fetched, as a file of the tenant unless it is one already, or none is needed. Raises
        InvalidPicture."""
        new = Photograph("", fetched.sha256, fetched.etag, fetched.modified)
        if known is not None and known.sha256 == new.sha256 and (known.image or not is_drawn):
            return replace(new, image=known.image)
        media_type = pictures.check(file, *self._limits)
        if self._job_id is None:
            return new
        number = ids.new()
        key = self._store.key(files.object_name(self._tenant_id, number))
        self._store.put_file(key, file, media_type)
        crash_point("photograph.stored")
        return _New(number, key, fetched.size, replace(new, image=files.public_id(number)))

    def _record(self, stored: Sequence[_New]) -> None:
        if not stored:
            return
        with self._lease.begin() as connection:
            for one in stored:
                files.record(
                    connection, one.file_id, tenant_id=self._tenant_id, purpose=inputs.PURPOSE, filename="photograph",
                    size=one.size, sha256=one.photograph.sha256, key=one.key, job_id=self._job_id,
                    expires_seconds=KEPT_SECONDS,
                )  # fmt: skip
