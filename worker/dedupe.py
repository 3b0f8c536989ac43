"""Before a claim is rendered, copies within the store the images that its tenant already has in the same class.

Images that cannot be copied now are rendered. Nothing here waits for an unavailable server or fails the claim.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

from services.core.crash_points import crash_point
from services.core.db.database import Database
from services.core.model import ids
from services.core.model.errors import StoreUnavailable
from services.core.model.specs import Image, StoredImage
from services.core.queue import dedupe
from services.core.storage import contract, keys
from worker.device import Device
from worker.heartbeat import HeldClaim

log = logging.getLogger(__name__)
COPIES = 8  # at once


class Dedupe:
    """Finds and copies existing images, for jobs that ask for it; for other jobs it costs nothing."""

    def __init__(
        self, database: Database, store: contract.ImageStore, device: Device, patience: float, *, takes_flagged: bool
    ) -> None:
        """`patience`: the seconds after which what is not copied is rendered. `takes_flagged`: also copies what the
        safety checker flagged."""
        self._database, self._objects, self._device, self._patience = database, store, device, patience
        self._takes_flagged = takes_flagged
        self._copying = ThreadPoolExecutor(COPIES, "copy")

    def copy_existing(self, held: HeldClaim) -> None:
        """Leaves in `held.remaining` the images that could not be copied. Never raises, since the claim is held."""
        wanted = [image for image in held.claim.images if image.dedupe]
        if not wanted:
            return
        try:
            held.skip_stored(self._copies(held, wanted))
        except Exception as error:
            log.warning("reuse skipped", extra={"claim": held.claim.id, "error": str(error)})

    def _copies(self, held: HeldClaim, wanted: list[Image]) -> Iterable[StoredImage]:
        expected = self._device.expected_class(held.claim)
        with self._database.begin_system() as connection:
            found = dedupe.find(connection, wanted, expected, checked=self._device.pipeline.checks)
        copying = [
            self._copying.submit(self._copy, held, image, source)
            for image in wanted
            if (source := found.get((image.job_id, image.index))) and (self._takes_flagged or not source.flagged)
        ]
        copied, late = wait(copying, self._patience)
        for future in late:
            future.cancel()
        return [copy for future in copied if (copy := future.result())]

    def _copy(self, held: HeldClaim, image: Image, source: StoredImage) -> StoredImage | None:
        """A copy that belongs to this job, so that the source may be deleted. None: it must be rendered."""
        name = keys.image_name(
            image.tenant_id, ids.public_job(image.job_id), image.index, image.render_key, image.output_format
        )
        try:
            copied = self._objects.copy_new(
                source.object_key,
                self._objects.key(name),
                sha256=source.sha256,
                size=source.bytes,
                claim_id=held.claim.id,
                of_member=_written(source),
            )
        except StoreUnavailable as error:
            log.warning("not copied", extra={"claim": held.claim.id, "error": str(error)})
            return None
        if copied is None:
            log.warning("not copied: missing or changed", extra={"claim": held.claim.id, "source": source.object_key})
            return None
        crash_point("image.copied")
        return replace(
            source, job_id=image.job_id, index=image.index, object_key=copied, render_seconds=0.0, reused=True
        )


def _written(source: StoredImage) -> dict[str, str]:
    """What a worker says of an object of its own: whoever adopts the copy records it."""
    versions = {} if source.versions is None else {"versions": source.versions}
    return {"device": source.device, "class": source.reproducibility_class} | versions
