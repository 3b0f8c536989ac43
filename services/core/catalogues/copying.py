"""Copies the published version to another bucket or folder: names, objects, the pointer, and then what has gone goes.

Each page of work ends with one transaction, so whoever continues after a crash does one page again, with the same
result. What has been copied stands in `catalogue_copies`; it is not copied again while its bytes are the same. Each
copy is read back and compared with the sha256 before it counts. Objects of others are neither replaced nor deleted.
"""

import hashlib
import io
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Connection

from services.core.catalogues import catalogues, copies, copy_manifests, destinations, entries
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.copies import Copy
from services.core.catalogues.copy_names import POINTER, Names
from services.core.catalogues.definition import Definition, DestinationFields
from services.core.catalogues.destinations import Destination
from services.core.catalogues.entries import Entry
from services.core.catalogues.templates import Inapplicable
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.model.errors import (
    InvalidSubmission,
    ObjectMissing,
    PressworkError,
    Problem,
    StoreRefused,
    StoreUnavailable,
)
from services.core.settings import Settings
from services.core.storage.contract import ImageStore
from services.core.storage.other_bucket import Held

_NAMED_AT_ONCE = 5_000
_COPIED_AT_ONCE = 200
_COPIERS = 8
_PARAM = "publish.to.s3"
_AWAY = "The object store cannot be reached, or is too busy."
log = logging.getLogger(__name__)


class Refused(PressworkError):
    """The version cannot be copied there as things stand: a code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def check(settings: Settings, store: ImageStore, definition: Definition) -> None:
    """Raises InvalidSubmission: this server does not write to the place that the definition names."""
    try:
        if definition.publish.to is not None:
            _check_place(settings, store, definition.publish.to)
    except Refused as error:
        raise InvalidSubmission([Problem(error.code, str(error), _PARAM)]) from None


def want(connection: Connection, catalogue_id: int) -> tuple[Catalogue, DestinationFields] | None:
    """From this commit on, what is published is to be copied to where the definition says. None: to nowhere."""
    catalogue, _ = catalogues.read(connection, catalogue_id)
    to = Definition.model_validate(catalogue.definition).publish.to
    if to is None or catalogue.published is None:
        destinations.forget(connection, catalogue_id)
        return None
    destinations.want(connection, catalogue, to.place, to.name, catalogue.published)
    return catalogue, to


def copy(settings: Settings, store: ImageStore, catalogue_id: int, lease: Lease, until: float) -> None:
    """Copies what is published to where the definition says, until the monotonic time `until`."""
    with lease.begin() as connection:
        wanted, found = want(connection, catalogue_id), destinations.find(connection, catalogue_id)
    if wanted is None or found is None:
        return
    catalogue, to = wanted
    try:
        work = _Copying(store, catalogue, to, found, lease)
        if found.is_due or (found.bucket in settings.publish_buckets and work.has_moved_back()):
            _check_place(settings, store, to)
            work.go_on(until)
    except Refused as error:
        with lease.begin() as connection:
            destinations.fail(connection, catalogue_id, error.code, str(error), again=False)
    except StoreRefused as error:
        with lease.begin() as connection:
            destinations.fail(connection, catalogue_id, "store_refused", str(error), again=True)
    except StoreUnavailable as error:  # its text names addresses, which are nothing for readers of a catalogue
        log.warning("store away while a catalogue is copied", extra={"catalogue": catalogue_id, "error": str(error)})
        with lease.begin() as connection:
            destinations.fail(connection, catalogue_id, "store_away", _AWAY, again=True)


class _Copying:
    """The work on one destination."""

    def __init__(
        self, store: ImageStore, catalogue: Catalogue, to: DestinationFields, at: Destination, lease: Lease
    ) -> None:
        self._store, self._catalogue, self._at, self._lease = store, catalogue, at, lease
        self._names = Names(to.name)
        self._bucket = store.other(at.bucket)
        self._owner = {"presswork-catalogue": hashlib.sha256(catalogue.public_id.encode()).hexdigest()[:32]}

    def has_moved_back(self) -> bool:
        """Whether all is copied, but the pointer names another version than it did then. If so, all is done again."""
        if self._at.state != "done":
            return False
        try:
            named = copy_manifests.version_of(self._bucket, self._at)
        except StoreUnavailable:  # the next look may tell more
            return False
        if named == self._at.announced:
            return False
        with self._lease.begin() as connection:
            destinations.restart(connection, self._catalogue.id)
            found = destinations.find(connection, self._catalogue.id)
        assert found is not None
        self._at = found
        return True

    def go_on(self, until: float) -> None:
        steps: dict[str, Callable[[], None]] = {
            "naming": self._name, "copying": self._copy, "deleting": self._delete
        }  # fmt: skip
        while self._at.step in steps and time.monotonic() < until:
            steps[self._at.step]()
            with self._lease.begin() as connection:
                found = destinations.find(connection, self._catalogue.id)
            assert found is not None
            self._at = found

    def _name(self) -> None:
        """Names the next pictures of the version, those that are not named yet."""
        item, variant = self._at.reached or ("", "")
        self._check_own(POINTER)
        with self._lease.database.read_system() as connection:
            page = entries.page(
                connection, self._catalogue.id, self._at.version, after=(item, variant), limit=_NAMED_AT_ONCE
            )
            known = copies.of_items(connection, self._at, [(one.item, one.variant) for one in page])
        new = [self._named(one) for one in page if (one.item, one.variant, one.sha256) not in known]
        with self._lease.begin() as connection:
            self._check_names(connection, new)
            copies.put(connection, self._at, new)
            is_last = len(page) < _NAMED_AT_ONCE
            reached = () if is_last else (page[-1].item, page[-1].variant)
            step: destinations.Step = "copying" if is_last else "naming"
            destinations.advance(connection, self._at, step, reached, counts={"images": len(page)})

    def _named(self, entry: Entry) -> Copy:
        try:
            name = self._names.of(entry.item, entry.variant, entry.sha256, entry.request.get("output_format", "png"))
        except Inapplicable as error:
            raise Refused(error.code, f"publish.to.name, of {_which(entry)}: {error}") from None
        return Copy(name, entry.item, entry.variant, self._at.rule, entry.sha256)

    def _check_names(self, connection: Connection, new: Sequence[Copy]) -> None:
        """Raises Refused: two pictures of the version have one name."""
        taken = copies.named(connection, self._at, [one.name for one in new])
        live = self._live(connection, list(taken.values()))
        seen = {one.name: one for one in taken.values() if one.name in live}
        for one in new:
            other = seen.setdefault(one.name, one)
            if (other.item, other.variant) != (one.item, one.variant):
                raise Refused(
                    "same_name", f"publish.to.name gives {one.name} for {_which(other)} and for {_which(one)}; "
                    "each picture needs a name of its own.",
                )  # fmt: skip

    def _live(self, connection: Connection, page: Sequence[Copy]) -> dict[str, Entry]:
        """The version's entries of these copies, by name. What is not among them has gone."""
        places = [(one.item, one.variant) for one in page]
        found = entries.these(connection, self._catalogue.id, self._at.version, places)
        return {
            one.name: entry
            for one in page
            if one.rule == self._at.rule
            and (entry := found.get((one.item, one.variant))) is not None
            and entry.sha256 == one.sha256
        }

    def _copy(self) -> None:
        """Copies the next objects, or moves the pointer when all are there."""
        after = self._at.reached[0] if self._at.reached else ""
        with self._lease.database.read_system() as connection:
            page = copies.waiting(connection, self._at, after=after, limit=_COPIED_AT_ONCE)
            live = self._live(connection, page)
        if not page:
            self._point()
            return
        copied = self._each(lambda name: self._copy_one(name, live[name]), list(live))
        with self._lease.begin() as connection:
            copies.are_there(connection, self._at, list(live))
            destinations.advance(connection, self._at, "copying", (page[-1].name,), counts={"copied": copied})

    def _copy_one(self, name: str, entry: Entry) -> bool:
        """Makes sure that the object is there. Returns whether it was copied. Between the look and the copy somebody
        else may write to the key; then the last one wins, as with any two writers of it."""
        key = self._at.key(name)
        metadata = self._owner | {"sha256": entry.sha256.hex()}
        held = self._check_own(name)
        if held is not None and held.metadata == metadata and self._is_whole(key, entry):  # copied before a crash
            return False
        try:
            self._bucket.copy(entry.object_key, key, copy_manifests.media_type(entry), metadata)
            crash_point("copy.stored")
        except ObjectMissing:
            raise Refused("object_gone", f"The picture of {_which(entry)} is not in the store any more.") from None
        if not self._is_whole(key, entry):
            raise Refused("damaged", f"s3://{self._at.bucket}/{key} does not have the sha256 of {_which(entry)}.")
        return True

    def _is_whole(self, key: str, entry: Entry) -> bool:
        """Whether the bytes at the key are the picture's, read back."""
        found, size = hashlib.sha256(), 0
        try:
            for block in self._bucket.blocks(key):
                found.update(block)
                size += len(block)
        except ObjectMissing:  # somebody deleted it meanwhile
            return False
        return size == entry.bytes and found.digest() == entry.sha256

    def _point(self) -> None:
        """Writes the manifest and then the pointer, last of all: who follows it finds everything."""
        self._check_own(POINTER)
        manifest, pointer = copy_manifests.write(self._bucket, self._at, self._catalogue, self._owner, self._lease)
        self._lease.keep()
        with self._lease.overwriting(lambda connection: destinations.restart(connection, self._catalogue.id)):
            self._bucket.put(self._at.key(POINTER), io.BytesIO(pointer), "application/json", self._owner)
        crash_point("copy.pointed")
        with self._lease.begin() as connection:
            copies.point(connection, self._at, manifest)
            destinations.advance(connection, self._at, "deleting", points=True)

    def _delete(self) -> None:
        """Deletes the next objects that the version does not have, which the pointer does not lead to any more."""
        after = self._at.reached[0] if self._at.reached else ""
        with self._lease.database.read_system() as connection:
            page = copies.page(connection, self._at, after=after, limit=_NAMED_AT_ONCE)
            live = self._live(connection, page)
        pictures = [one.name for one in page if one.name not in live and not one.is_manifest]
        former = [one.name for one in page if one.is_manifest and not one.is_there]
        with self._lease.begin() as connection:
            copies.are_going(connection, self._at, pictures)
        crash_point("copy.going")
        deleted = self._each(self._drop, pictures)
        self._each(self._drop, former)
        crash_point("copy.dropped")
        is_last = len(page) < _NAMED_AT_ONCE
        with self._lease.begin() as connection:
            copies.forget(connection, self._at, pictures + former)
            step: destinations.Step = "done" if is_last else "deleting"
            reached = () if is_last else (page[-1].name,)
            destinations.advance(connection, self._at, step, reached, counts={"deleted": deleted})

    def _each(self, work: Callable[[str], bool], names: Sequence[str]) -> int:
        """Does it for several names at a time, and keeps the lease. Returns for how many it was true."""
        count = 0
        with ThreadPoolExecutor(_COPIERS) as pool:
            try:
                for done in pool.map(work, names):
                    count += done
                    self._lease.keep()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return count

    def _drop(self, name: str) -> bool:
        """Deletes an object of ours. Returns whether there was one."""
        held = self._bucket.held(self._at.key(name))
        if held is None or not self._owner.items() <= held.metadata.items():
            return False
        self._bucket.drop(self._at.key(name))
        return True

    def _check_own(self, name: str) -> Held | None:
        """The object of that name, if there is one, which is ours. Raises Refused if it is somebody else's."""
        held = self._bucket.held(self._at.key(name))
        if held is not None and not self._owner.items() <= held.metadata.items():
            message = f"s3://{self._at.bucket}/{self._at.key(name)} exists and is not of this catalogue"
            raise Refused("taken", f"{message}; delete it, or name another folder in publish.to.s3.")
        return held


def _check_place(settings: Settings, store: ImageStore, to: DestinationFields) -> None:
    bucket, _, folder = to.place.partition("/")
    if bucket not in settings.publish_buckets:
        raise Refused("forbidden_bucket", f"PRESSWORK_PUBLISH_BUCKETS does not name the bucket {bucket}.")
    if store.overlaps(bucket, folder):
        raise Refused("forbidden_bucket", f"Presswork's own objects lie at s3://{to.place}; name another folder.")


def _which(one: Copy | Entry) -> str:
    return f"the item {one.item!r}, variant {one.variant}"
