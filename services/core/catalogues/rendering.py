"""A run's job: what is new or changed, submitted as a draft that grows chunk by chunk, and whether it has ended.

A chunk is committed once, however often it is sent, so a crash while submitting costs one chunk's parsing.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import changes
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.files import files
from services.core.fleet import models
from services.core.fleet.models import Registry
from services.core.jobs import drafts, lifecycle
from services.core.jobs.inputs import Inputs
from services.core.jobs.submissions import Submission
from services.core.model import requests
from services.core.model.errors import Conflict, InvalidSubmission, NoModels, NotFound
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.policy.refusals import Door
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

REQUESTS = 2_000  # in a chunk
_GONE = (
    "image_not_found", "The photograph was deleted after the run had been planned; the next run looks for it again."
)  # fmt: skip
_HAS_ENDED = statement("rendering.has_ended")("""
SELECT NOT EXISTS (SELECT FROM jobs WHERE id = :job_id AND finished_at IS NULL AND deleted_at IS NULL)
""")
_TO_REVIEW = statement("rendering.to_review")("""
SELECT count(*) AS to_review,
       (SELECT coalesce(sum(accepted + rejected + starred), 0) FROM mark_counts WHERE job_id = :job_id) AS marked_before
FROM catalogue_changes c
JOIN LATERAL (SELECT 1 FROM results r WHERE r.job_id = :job_id AND r.index = c.position OFFSET 0) done ON true
WHERE c.run_id = :run_id AND c.kind = ANY(CAST(:kinds AS text[]))
  AND NOT EXISTS (SELECT FROM marks m WHERE m.job_id = :job_id AND m.index = c.position OFFSET 0)
""")


def create(connection: Connection, catalogue: Catalogue, run: Run, job_id: int) -> None:
    """Records the empty draft, in the transaction that ends the planning."""
    drafts.create(
        connection, catalogue.tenant_id, job_id, priority=requests.PRIORITIES["normal"],
        labels={"catalogue": catalogue.name, "run": runs.public_id(run.id)}, dedupe=True, embed_prompt=False,
    )  # fmt: skip


def submit(settings: Settings, store: ImageStore, notifier: Notifier, run: Run, lease: Lease) -> None:
    """Adds what is left to the draft, and queues it. Raises NoModels while no worker has registered a model."""
    with lease.begin() as connection:
        known = models.registry(connection)
    if not known:
        raise NoModels
    names: list[str] = []
    try:
        first = run.position
        while (reached := _append_next(settings, store, known, run, first, lease)) is not None:
            first = reached
        with lease.begin() as connection:
            assert run.job_id is not None
            if first:
                names = drafts.finalize(connection, run.tenant_id, run.job_id, first)
            else:  # no photograph is left
                lifecycle.cancel(connection, run.tenant_id, run.job_id)
            runs.move(connection, run, "rendering")
    except InvalidSubmission as error:
        with lease.begin() as connection:
            first_problem = error.problems[0]
            runs.move(connection, run, "failed", error={"code": first_problem.code, "message": first_problem.message})
    except (Conflict, NotFound):  # somebody cancelled or deleted the job: what it has counts
        with lease.begin() as connection:
            runs.move(connection, run, "rendering")
    crash_point("catalogue.submitted")
    for name in names:  # if this is lost, a periodic task and the workers' timers find the job within seconds
        notifier.notify(name)


def _append_next(
    settings: Settings, store: ImageStore, known: Registry, run: Run, first: int, lease: Lease
) -> int | None:  # fmt: skip
    """Adds the next chunk to the draft. Returns where the one after it begins; None: all are added. Changes whose
    photographs were deleted meanwhile are set aside, and then the chunk begins again."""
    assert run.job_id is not None
    number = first // REQUESTS
    with lease.begin() as connection:
        page = changes.page(connection, run.id, first=first, limit=REQUESTS)
        page = [change for change in page if change.position < changes.ASIDE]
        existing = drafts.existing(connection, run.tenant_id, run.job_id, number)
        policy = policies.at(settings, connection, Door("catalogue", run.tenant_id))
    if not page:
        return None
    pictures = Inputs(settings, lease.begin, store, run.tenant_id)
    if gone := _gone(page, pictures):
        with lease.begin() as connection:
            changes.set_aside(connection, run.id, gone, *_GONE)
        return first
    with Submission(settings, known, policy=policy, existing=existing, pictures=pictures) as submission:
        for change in page:
            submission.add(change.line or 0, change.request)
        submission.close()
        reached = page[-1].position + 1
        try:
            with lease.begin() as connection:
                files.keep_for(connection, run.tenant_id, run.job_id, _files(page))
                drafts.append(connection, run.tenant_id, submission, number)
                runs.advance(connection, run, reached)
            crash_point("catalogue.appended")
        except InvalidSubmission:
            if _gone(page, Inputs(settings, lease.begin, store, run.tenant_id)):  # since it was looked for
                return first
            raise
    return reached


def _gone(page: Sequence[Change], pictures: Inputs) -> list[int]:
    """Positions of the changes whose photographs are not there."""
    named = {
        change.position: change.request["image"] for change in page if change.request and "image" in change.request
    }
    found = pictures.find(named.values()) if named else {}
    return [position for position, name in named.items() if name not in found]


def _files(page: Sequence[Change]) -> list[int]:
    """The files that these changes redraw."""
    named = {(change.request or {}).get("image") or "" for change in page}
    return [files.parse_id(name) for name in sorted(named) if name.startswith("file-")]


def has_ended(run: Run, lease: Lease) -> bool:
    """Whether the run's job is in its final state, or gone."""
    with lease.begin() as connection:
        return bool(connection.execute(_HAS_ENDED, {"job_id": run.job_id}).scalar_one())


def to_review(run: Run, lease: Lease) -> dict[str, int]:
    """How many changed pictures no person has marked, `to_review`; and how many marks there are, `marked_before`."""
    with lease.begin() as connection:
        values = {"job_id": run.job_id, "run_id": run.id, "kinds": list(changes.REVIEWED)}
        row = connection.execute(_TO_REVIEW, values).one()
    return {"to_review": row.to_review, "marked_before": int(row.marked_before)}
