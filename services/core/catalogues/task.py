"""The background task of catalogues: the holder of a catalogue's lease takes its runs from state to state, and tidies.

Each step can be repeated: what it did before a crash is done again with the same result, or found to be done. The
published version moves in one transaction, at the end, and only if a run's rules allow it.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from services.core.catalogues import (
    catalogue_runs as runs,
)
from services.core.catalogues import (
    catalogues,
    changes,
    copying,
    manifests,
    preparation,
    redrawing,
    rendering,
    tidying,
    unmarked,
    versions,
    writing,
)
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.definition import Definition
from services.core.catalogues.writing import Review
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.jobs import lifecycle
from services.core.model.errors import Conflict, NotFound, QuotaExceeded
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

SLICE_SECONDS = 20.0  # then other catalogues get their turn
pending = runs.pending
_Step = Callable[[Catalogue, Run], object]


class CatalogueTask:
    """Works on one catalogue."""

    def __init__(self, settings: Settings, store: ImageStore, notifier: Notifier, lease: Lease) -> None:
        self._settings, self._store, self._notifier, self._lease = settings, store, notifier, lease
        self._until = time.monotonic() + SLICE_SECONDS
        self._steps: dict[str, _Step] = {
            "queued": self._plan,
            "submitting": self._submit,
            "rendering": self._await_job,
            "reviewing": self._await_review,
            "writing": self._write,
        }

    def run(self, catalogue_id: int) -> None:
        """Works on the catalogue for about a time slice. Call it again while the catalogue is pending."""
        with self._lease.begin() as connection:
            catalogue, is_deleted = catalogues.read(connection, catalogue_id)
            live = runs.live(connection, catalogue_id)
        for run in live:
            if is_deleted or run.cancel_requested_at is not None:
                self._cancel(run)
            else:
                self._go_on(catalogue, run)
        if is_deleted:
            tidying.remove(self._store, catalogue, self._lease)
        else:
            tidying.tidy(self._store, catalogue, _definition(catalogue.definition).keep, self._lease)
            copying.copy(self._settings, self._store, catalogue_id, self._lease, self._until)

    def _go_on(self, catalogue: Catalogue, run: Run) -> None:
        """Takes the run on until it waits, has ended, or the time slice is over."""
        while not run.is_final and time.monotonic() < self._until:
            before = (run.state, run.position)
            try:
                self._steps[run.state](catalogue, run)
            except QuotaExceeded as error:
                self._stop_job(run)
                with self._lease.begin() as connection:
                    runs.move(connection, run, "failed", error={"code": "quota_exceeded", "message": str(error)})
            with self._lease.begin() as connection:
                run = runs.read(connection, run.id)
            if (run.state, run.position) == before:
                return

    def _plan(self, catalogue: Catalogue, run: Run) -> None:
        try:
            preparation.prepare(self._settings, self._store, catalogue, run, self._lease)
        except preparation.Cancelled:
            self._cancel(run)

    def _submit(self, _: Catalogue, run: Run) -> None:
        rendering.submit(self._settings, self._store, self._notifier, run, self._lease)

    def _await_job(self, _: Catalogue, run: Run) -> None:
        if rendering.has_ended(run, self._lease):
            review = _review(run)
            counts = rendering.to_review(run, self._lease) if review.changed else {}
            with self._lease.begin() as connection:
                runs.move(connection, run, "reviewing" if counts.get("to_review") else "writing", counts=counts)
        elif run.deadline is not None and run.deadline <= datetime.now(UTC):
            self._stop_job(run)

    def _await_review(self, _: Catalogue, run: Run) -> None:
        is_over = run.deadline is not None and run.deadline <= datetime.now(UTC)
        with self._lease.begin() as connection:
            run = runs.hold(connection, run.id)  # nobody has a picture drawn again meanwhile
            left = None if is_over else unmarked.first(connection, run)
            if left is None:
                redrawing.stop(connection, run)
                runs.move(connection, run, "writing")
            else:
                runs.await_mark(connection, run, left)

    def _write(self, catalogue: Catalogue, run: Run) -> None:
        if run.position == 0:
            writing.begin(catalogue, run, self._lease)
        position, review = run.position, _review(run)
        while (position := writing.write_next(self._store, catalogue, run, review, position, self._lease)) >= 0:
            if time.monotonic() > self._until:
                return
        self._end(catalogue, run)

    def _end(self, catalogue: Catalogue, run: Run) -> None:
        """Makes the version whole, and publishes it if the rules allow it."""
        assert run.version is not None
        images, size, files = manifests.write(self._store, catalogue, run, self._lease)
        crash_point("manifest.stored")
        publish = _definition(run.definition).publish
        with self._lease.begin() as connection:
            current = catalogues.find(connection, catalogue.tenant_id, catalogue.name, lock=True)
            versions.add(connection, catalogue.id, run.version, run.id, images=images, size=size, manifests=files)
            outcomes, causes = changes.outcomes(connection, run.id), changes.causes(connection, run.id)
            counts = {"images": images, **{name: outcomes.get(name, 0) for name in ("done", "failed", "rejected")}}
            reason = _why_not(run, current, counts, publish.require)
            if reason is None:
                catalogues.publish(connection, current, run.version)
                runs.move(connection, run, "published", counts=counts, causes=causes)
            else:
                catalogues.want_tidying(connection, catalogue.id)
                runs.move(connection, run, "kept", counts=counts, error=reason, causes=causes)

    def _cancel(self, run: Run) -> None:
        self._stop_job(run)
        with self._lease.begin() as connection:
            run = runs.hold(connection, run.id)
            redrawing.stop(connection, run)
            runs.move(connection, run, "cancelled")

    def _stop_job(self, run: Run) -> None:
        if run.job_id is not None:
            with self._lease.begin() as connection:
                try:
                    lifecycle.cancel(connection, run.tenant_id, run.job_id)
                except (Conflict, NotFound):  # it has ended, or somebody deleted it
                    return


def run(settings: Settings, store: ImageStore, notifier: Notifier, catalogue_id: int, lease: Lease) -> None:
    with suppress(preparation.Stopping):
        CatalogueTask(settings, store, notifier, lease).run(catalogue_id)


def _definition(given: dict[str, object]) -> Definition:
    return Definition.model_validate(given)


def _review(run: Run) -> Review:
    publish = _definition(run.definition).publish
    return Review(publish.review == "changed", publish.undecided == "accept")


def _why_not(run: Run, current: Catalogue, counts: dict[str, int], require: float) -> dict[str, str] | None:
    """Why the version is not published, as a code and a message."""
    if (current.published or 0) != run.base:
        message = f"Version {current.published} was published since the run began with version {run.base}."
        return {"code": "published_meanwhile", "message": message}
    wanted = sum(run.counts.get(kind, 0) for kind in ("unchanged", "broken", *changes.RENDERED))
    good = run.counts.get("unchanged", 0) + counts["done"]
    if wanted and good < require * wanted:
        message = (
            f"{good:,} of {wanted:,} pictures are good, {good / wanted:.1%}; publish.require asks for {require:.1%}."
        )
        return {"code": "too_few_good", "message": message}
    return None
