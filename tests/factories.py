"""What tests are made of: jobs, claims and stored images, each with sensible defaults."""

import hashlib
from collections.abc import Iterable
from typing import Any

from services.core.db.database import Connection, Database
from services.core.fleet import models
from services.core.jobs import submissions
from services.core.model import requests
from services.core.model.specs import Claim, ModelCard, StoredImage
from services.core.policy import policies
from services.core.queue import claims, looks, segments, settlement
from services.core.settings import Settings

REVISION = "simulated-test"
CARD = ModelCard(
    name="simulated",
    revision=REVISION,
    sizes=((64, 64), (256, 256), (512, 512)),
    max_steps=50,
    batch_sizes=(16, 8, 4, 1),
    default_size=(512, 512),
    default_steps=10,
    default_guidance_scale=7.5,
    redraws=True,
)
TENANT = 1


def register(database: Database, card: ModelCard = CARD) -> None:
    with database.begin_system() as connection:
        models.register(connection, card)


def submit(
    database: Database,
    settings: Settings,
    images: int | Iterable[dict[str, Any]] = 1,
    *,
    priority: str = "normal",
    tenant: int = TENANT,
    head: dict[str, Any] | None = None,
    **fields: Any,
) -> int:
    """A job of that many images (or of these requests), recorded as the API records it; its id."""
    rows = [{"prompt": f"a mug, number {index}"} for index in range(images)] if isinstance(images, int) else images
    with database.begin_system() as connection:
        registry = models.registry(connection)
    with submissions.Submission(settings, registry, policy=policies.NOTHING) as submission:
        for index, row in enumerate(rows):
            submission.add(index, {**row, **fields})
        label = requests.JobOptions.model_validate({"priority": priority, **(head or {})})
        return submission.record(database, tenant, label=label).job_id


def claim(
    database: Database,
    seats: int = 16,
    *,
    worker: str = "worker-a",
    turn: int = 1,
    lease: float = 30.0,
    revision: str = REVISION,
) -> Claim | None:
    while True:
        with database.begin_system() as connection:
            taken = claim_in(connection, seats, worker=worker, turn=turn, lease=lease, revision=revision)
        if taken is not None:
            return taken
        with database.begin_system() as connection:  # as a worker does: what is drained is not looked at again
            if not segments.raise_low(connection):
                return None


def claim_in(
    connection: Connection,
    seats: int = 16,
    *,
    worker: str = "worker-a",
    turn: int = 1,
    lease: float = 30.0,
    revision: str = REVISION,
) -> Claim | None:
    chosen = looks.candidates(connection, revision, turn, worker)
    return claims.claim(connection, chosen, worker_id=worker, seats=seats, lease=lease)


def stored(claim: Claim, picture: bytes = b"picture") -> list[StoredImage]:
    """What a worker would report for every image of the claim."""
    return [
        StoredImage(
            job_id=image.job_id,
            index=image.index,
            object_key=f"test/{image.job_id}/{image.index}.png",
            sha256=hashlib.sha256(picture).digest(),
            bytes=len(picture),
            device="host device",
            reproducibility_class="test/16",
            versions="presswork 0.1.0",
            truncated=False,
            flagged=None,
            unknown_words=(),
            render_seconds=0.1,
        )
        for image in claim.images
    ]


def places(claim: Claim) -> list[tuple[int, int]]:
    return [(image.job_id, image.index) for image in claim.images]


def settle(database: Database, claim: Claim, **outcome: Any) -> settlement.Settlement:
    """Settles a claim, as done by default."""
    with database.begin_system() as connection:
        return settlement.settle(connection, claim.id, device="host device", **(outcome or {"stored": stored(claim)}))
