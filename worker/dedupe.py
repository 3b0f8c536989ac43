"""Before a claim is rendered: what its tenant has already, in the same class, is copied within the store.

Whatever cannot be copied now is rendered; nothing here waits for a server that is away, and nothing fails.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
    """The look at what lies in the store, for the images of jobs that ask for it; for others it costs nothing."""

    def __init__(self, database: Database, store: contract.ImageStore, device: Device) -> None:
        self._database, self._objects, self._device = database, store, device
        self._copying = ThreadPoolExecutor(COPIES, "copy")

    def look(self, held: HeldClaim) -> None:
        """Leaves to be rendered what could not be copied. Never raises: the claim is held."""
        wanted = [image for image in held.claim.images if image.dedupe]
        if not wanted:
            return
        try:
            held.skip_stored(self._copies(held, wanted))
        except Exception as error:
            log.warning("reuse left out", extra={"claim": held.claim.id, "error": str(error)})

    def _copies(self, held: HeldClaim, wanted: list[Image]) -> Iterable[StoredImage]:
        expected = self._device.expected_class(held.claim.shape)
        with self._database.begin_system() as connection:
            found = dedupe.find(connection, wanted, expected)
        copying = [
            self._copying.submit(self._copy, held, image, source)
            for image in wanted
            if (source := found.get((image.job_id, image.index)))
        ]
        return [copy for future in copying if (copy := future.result())]

    def _copy(self, held: HeldClaim, image: Image, source: StoredImage) -> StoredImage | None:
        """An object of this job's own: that the source's goes some day must not matter. None: it is to be rendered."""
        key = keys.image_key(
            image.tenant_id, ids.public_job(image.job_id), image.index, image.render_key, image.output_format
        )
        try:
            copied = self._objects.copy_new(
                source.object_key, key, sha256=source.sha256, size=source.bytes, claim_id=held.claim.id
            )
        except StoreUnavailable as error:
            log.warning("not copied", extra={"claim": held.claim.id, "error": str(error)})
            return None
        if copied is None:
            log.warning("not copied: gone or changed", extra={"claim": held.claim.id, "source": source.object_key})
            return None
        return replace(
            source, job_id=image.job_id, index=image.index, object_key=copied, render_seconds=0.0, reused=True
        )
