"""Draws pictures of a review again with other seeds: images of a new job of the run take the places of the old ones.

One transaction, which holds the run in its review, makes the job and lets the changes name its images: whatever dies, a
picture is drawn again as a whole or not at all. A seed follows from how often the picture was drawn again, so it is the
one that a later run gives the picture, too. Functions take an open transaction and never commit.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from sqlalchemy import Connection

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import changes, expansion, looks
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Again, Change
from services.core.catalogues.definition import Definition
from services.core.catalogues.version_list import FileShape
from services.core.db.columns import Payload
from services.core.jobs import idempotency, lifecycle, queries, reseeding
from services.core.jobs.queries import ImageView
from services.core.jobs.reseeding import Reseeded
from services.core.jobs.retry import RetryResult
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound
from services.core.model.requests import PRIORITIES
from services.core.model.specs import first_step
from services.core.model.states import FINAL_IMAGE_STATES
from services.core.policy.policies import Policy

AT_ONCE = 1_000  # pictures that one call draws again
MOST_JOBS = 900  # of one review


def redraw(
    connection: Connection, catalogue: Catalogue, run_id: int, positions: Sequence[int], *,
    policy: Policy, idempotency_key: str | None = None,
) -> RetryResult:  # fmt: skip
    """Queues these pictures of a review with their next seeds, all in one job. The review waits for them.

    Raises:
        Conflict: the review has not begun or has ended (`review_ended`), one is no picture that the review is about
            (`not_reviewed`), one is being drawn (`being_drawn`), or there were too many jobs (`too_many_redraws`).
        NotFound: the run's job has been deleted.
        IdempotencyConflict, IdempotencyGone, IdempotencyBusy: the key was used for another request or for what is
            deleted, or is in use right now.
    """
    wanted, job_id = sorted(set(positions)), ids.new()
    if idempotency_key is not None:
        digest = idempotency.digest("redraw", run_id, wanted)
        known = idempotency.remember(connection, catalogue.tenant_id, idempotency_key, sha256=digest, thing=job_id)
        if known is not None:
            return RetryResult(known, [], replayed=True)
    run = runs.hold(connection, run_id)
    if run.state != "reviewing":
        raise Conflict(f"Nothing was drawn again: the run is {run.state} and not in a review.", "review_ended")
    if run.job_id is None or len(run.redraw_jobs) >= MOST_JOBS:
        message = (
            f"This review has drawn pictures again {MOST_JOBS:,} times, which is the limit; accept or reject them."
        )
        raise Conflict(message, "too_many_redraws")
    page = changes.at(connection, run.id, wanted)
    if len(page) < len(wanted) or any(
        one.kind not in changes.REVIEWED or one.position >= changes.ASIDE for one in page
    ):
        raise Conflict("Only pictures that replace others are reviewed and can be drawn again.", "not_reviewed")
    images = looks.images(connection, run, page)
    _check(page, images)
    first = {image.index: image.payload for image in queries.images_at(connection, run.job_id, wanted)}
    again = [_again(catalogue, run, one, first[one.position]) for one in page if one.position in first]
    seeds = [Reseeded(one.position, one.seed) for one in again]
    models = reseeding.draw(
        connection, run.tenant_id, run.job_id, job_id, seeds, priority=PRIORITIES["high"], policy=policy
    )
    changes.draw_again(connection, run.id, job_id, again)
    superseded = sum(image.mark is not None for image in images.values())
    runs.redrawn(connection, run, job_id, images=len(page), superseded=superseded)
    return RetryResult(job_id, models)


def stop(connection: Connection, run: Run) -> None:
    """Cancels what a review that ends is still drawing. The run must be held."""
    for job_id in run.redraw_jobs:
        with suppress(Conflict, NotFound):  # it has ended, or somebody deleted it
            lifecycle.cancel(connection, run.tenant_id, job_id)


def _check(page: Sequence[Change], images: Mapping[int, ImageView]) -> None:
    """Raises Conflict: one is being drawn."""
    busy = [one for one in page if one.position in images and images[one.position].state not in FINAL_IMAGE_STATES]
    if busy:
        first = f"{busy[0].item}, {busy[0].variant}"
        rest = f" and {len(busy) - 1:,} more are" if len(busy) > 1 else " is"
        raise Conflict(f"{first}{rest} being drawn again already; nothing was asked for twice.", "being_drawn")


def _again(catalogue: Catalogue, run: Run, change: Change, payload: Payload) -> Again:
    """The next seed of a change's picture, with the render key that it gives. `payload` is the request in the run's
    job."""
    assert change.request is not None
    assert change.model_revision is not None
    asked = change.request
    definition = Definition.model_validate(run.definition)
    rule = definition.seed_of(definition.variants[change.variant])
    seed = expansion.seed_of(rule, catalogue.name, change.item, change.variant, change.redraws + 1)
    width, height = map(int, asked["size"].split("x"))
    steps: int = asked["num_inference_steps"]
    shape = FileShape(
        change.model_revision, width, height, steps, payload.guidance_scale, payload.output_format,
        payload.output_compression, 0 if payload.strength is None else first_step(steps, payload.strength),
    )  # fmt: skip
    key = shape.render_key(payload.prompt, payload.negative_prompt, seed, payload.image_sha256 or b"")
    return Again(change.position, seed, key)
