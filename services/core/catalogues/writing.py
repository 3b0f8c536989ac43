"""Writes a run's version: copies what was rendered to the catalogue's own keys, and records each item's picture.

Changes are taken in order, some hundred at a time: first the copies, then one transaction with the entries, with what
came of the changes, and with how far the run has come. So whoever continues after a crash copies a few pictures again,
to the same keys. An item whose picture failed or was rejected keeps the one that it has, which is then stale.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import changes, entries, looks
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change, Settled
from services.core.catalogues.entries import Picture
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.jobs.queries import ImageView
from services.core.model.file_names import EXTENSIONS
from services.core.model.states import ImageState
from services.core.storage.contract import ImageStore

AT_ONCE = 500
_COPIERS = 8
_REJECTED = Settled(-1, "rejected", "rejected", "A person rejected the picture.")
_UNREVIEWED = Settled(-1, "rejected", "unreviewed", "Nobody had looked at the picture when the review ended.")


@dataclass(frozen=True, slots=True)
class Review:
    """Which pictures need a person's mark: none, or the changed ones. `unmarked`: what was not looked at is taken."""

    changed: bool
    unmarked: bool

    def refuses(self, change: Change, image: ImageView) -> Settled | None:
        if not self.changed or change.kind == "new" or image.mark in ("accepted", "starred"):
            return None
        if image.mark == "rejected":
            return _REJECTED
        return None if self.unmarked else _UNREVIEWED


def begin(catalogue: Catalogue, run: Run, lease: Lease) -> None:
    """The new version begins as the one that the run was compared with."""
    assert run.version is not None
    more = True
    while more:
        with lease.begin() as connection:
            more = entries.begin_as(connection, catalogue.id, base=run.base, version=run.version, most=5_000)


def write_next(store: ImageStore, catalogue: Catalogue, run: Run, review: Review, position: int, lease: Lease) -> int:
    """Writes the next changes from `position` on. Returns where the next ones begin, or -1 if there are none."""
    assert run.version is not None
    with lease.database.read_system() as connection:
        page = changes.page(connection, run.id, first=position, limit=AT_ONCE)
        images = looks.images(connection, run, page)
    if not page:
        return -1
    settled: list[Settled] = []
    ready: list[tuple[Change, ImageView]] = []
    for change in page:
        image = images.get(change.position)
        outcome = _trouble(change, image, review)
        if outcome is not None:
            settled.append(outcome)
        elif image is not None:
            ready.append((change, image))
    with ThreadPoolExecutor(_COPIERS) as pool:
        copied = list(pool.map(lambda pair: _copy(store, catalogue, run, *pair), ready))
    lease.keep()
    pictures = [found for found in copied if isinstance(found, Picture)]
    settled += [found for found in copied if isinstance(found, Settled)]
    settled += [Settled(picture.change.position, "done") for picture in pictures]
    _record(catalogue, run, page, pictures, settled, lease)
    return page[-1].position + 1


def _record(
    catalogue: Catalogue, run: Run, page: Sequence[Change], pictures: Sequence[Picture], settled: Sequence[Settled],
    lease: Lease,
) -> None:  # fmt: skip
    assert run.version is not None
    outcomes = {one.position: one.outcome for one in settled}
    stale = [change for change in page if outcomes[change.position] in ("failed", "rejected")]
    removed = [change for change in page if outcomes[change.position] == "removed"]
    with lease.begin() as connection:
        if pictures:
            entries.replace(connection, catalogue.id, run.version, pictures)
        if stale:
            entries.keep_stale(connection, catalogue.id, run.version, stale)
        if removed:
            entries.remove(connection, catalogue.id, run.version, removed)
        changes.settle(connection, run.id, settled)
        runs.advance(connection, run, page[-1].position + 1)


def _trouble(change: Change, image: ImageView | None, review: Review) -> Settled | None:
    """What came of a change that has no picture to copy."""
    if change.kind == "removed":
        return Settled(change.position, "removed")
    if change.kind == "broken" or change.position >= changes.ASIDE:
        return Settled(change.position, "failed")
    if image is None:
        return Settled(change.position, "failed", "job_deleted", "The run's job was deleted before its end.")
    if image.state is ImageState.DONE:
        refused = review.refuses(change, image)
        return None if refused is None else Settled(change.position, refused.outcome, refused.code, refused.message)
    if image.state is ImageState.FAILED:
        return Settled(change.position, "failed", image.error_code, image.error_message)
    return Settled(change.position, "failed", "not_rendered", "The run's time was over before it was rendered.")


def _copy(store: ImageStore, catalogue: Catalogue, run: Run, change: Change, image: ImageView) -> Picture | Settled:
    """Copies a rendered picture to the key of its bytes, which versions share."""
    assert image.object_key is not None
    assert image.sha256 is not None
    assert image.bytes is not None
    name = f"objects/{image.sha256[:2]}/{image.sha256}.{EXTENSIONS[image.payload.output_format]}"
    digest = bytes.fromhex(image.sha256)
    key = store.copy_new(
        image.object_key, store.key(catalogue.folder + name), sha256=digest, size=image.bytes, claim_id=run.id
    )
    crash_point("catalogue.copied")
    if key is None:
        return Settled(change.position, "failed", "object_gone", "The rendered picture is not in the store any more.")
    return Picture(change, key, digest, image.bytes, image.reproducibility_class or "", image.job_id, image.index)
