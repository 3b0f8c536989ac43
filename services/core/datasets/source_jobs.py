"""The jobs of a dataset: those that its sources name, and every retry of one of them.

A retry renders images again that failed, so what it has done takes their place. All jobs that come from one job, by
retries of retries, are one family, also once that job is deleted.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from services.core.datasets import dataset_records
from services.core.datasets.dataset_records import Dataset, JobState
from services.core.datasets.definition import Definition
from services.core.db.statements import statement
from services.core.model import ids, states
from services.core.model.errors import Conflict, NotFound

# A job that was deleted is named by its id, or by what the version before knew of it: its retries say whose they are.
_FAMILIES = """
WITH RECURSIVE named (id) AS (
  SELECT unnest(CAST(:jobs AS bigint[]))
  UNION
  SELECT id FROM unnest(CAST(:before AS bigint[]) || CAST(:roots AS bigint[])) AS known (id)
  WHERE NOT EXISTS (SELECT FROM jobs WHERE jobs.id = known.id AND deleted_at IS NULL AND objects_deleted_at IS NULL)
  UNION
  SELECT jobs.id FROM jobs JOIN unnest(CAST(:labels AS jsonb[])) AS label ON jobs.labels @> label
  WHERE tenant_id = :tenant_id
), family (id) AS (
  SELECT id FROM named
  UNION
  SELECT retry.id FROM family CROSS JOIN LATERAL (
    SELECT id FROM jobs WHERE parent_id = family.id AND tenant_id = :tenant_id
    UNION ALL
    SELECT id FROM unnest(CAST(:before AS bigint[]), CAST(:roots AS bigint[])) AS known (id, root)
    WHERE root = family.id
  ) retry
), climbed (id, root) AS (
  SELECT id, id FROM family
  UNION
  SELECT climbed.id, jobs.parent_id FROM climbed JOIN jobs ON jobs.id = climbed.root WHERE jobs.parent_id IS NOT NULL
)
SELECT jobs.id, min(climbed.root) AS root, state, finished_at IS NOT NULL AS is_final, total, labels, created_at,
       {marks} AS marks
FROM jobs JOIN climbed ON climbed.id = jobs.id
WHERE tenant_id = :tenant_id AND deleted_at IS NULL
  AND objects_deleted_at IS NULL AND state <> 'draft' AND state <> 'validating'
GROUP BY jobs.id ORDER BY jobs.id
"""
_MARKS = """(SELECT format('%s/%s/%s', count(*), max(at), sum(extract(epoch FROM at))) FROM marks
        WHERE marks.job_id = jobs.id)"""
_JOBS = statement("source_jobs.jobs")(_FAMILIES.format(marks=_MARKS))
_UNMARKED = statement("source_jobs.unmarked")(_FAMILIES.format(marks="''"))
_UNMATCHED = statement("source_jobs.unmatched")("""
SELECT place FROM unnest(CAST(:labels AS jsonb[])) WITH ORDINALITY AS wanted (label, place)
WHERE NOT EXISTS (SELECT FROM jobs WHERE tenant_id = :tenant_id AND deleted_at IS NULL
  AND objects_deleted_at IS NULL AND labels @> label)
ORDER BY place LIMIT 1
""")
# Until the plan is committed nobody deletes a job of it.
_LOCK = statement("source_jobs.lock")("""
SELECT count(*) FROM (
  SELECT FROM jobs WHERE id = ANY(CAST(:jobs AS bigint[])) AND deleted_at IS NULL
  AND objects_deleted_at IS NULL ORDER BY id FOR SHARE) locked
""")
_REJECTED = statement("source_jobs.rejected")("""
SELECT index FROM marks WHERE job_id = :job_id AND index >= :first AND index < :end AND mark = 'rejected'
""")
_KNOWN = statement("source_jobs.known")(
    "SELECT id FROM jobs WHERE id = ANY(CAST(:jobs AS bigint[])) AND deleted_at IS NULL AND objects_deleted_at IS NULL"
)


@dataclass(frozen=True, slots=True)
class SourceJob:
    """A job of a dataset. `root`: the first job of its family, which may be deleted; `marks`: a text that changes with
    the marks of its images."""

    id: int
    root: int
    state: str
    is_final: bool
    total: int
    labels: dict[str, str]
    created_at: Any
    marks: str


def find(
    connection: Connection, tenant_id: int, definition: Definition, before: Sequence[JobState] = (), *,
    with_marks: bool = True,
) -> list[SourceJob]:  # fmt: skip
    """The jobs, oldest first, of those statuses that the filters ask for. `before`: the jobs of the version before."""
    statuses = definition.filters.statuses
    roots = {one.job_id: one.root_id for one in before}
    values = _values(tenant_id, definition) | {"before": list(roots), "roots": list(roots.values())}
    found = [SourceJob(*row) for row in connection.execute(_JOBS if with_marks else _UNMARKED, values)]
    found = [replace(job, root=min(job.root, roots.get(job.id, job.root))) for job in found]
    return [job for job in found if not statuses or not job.is_final or job.state in statuses]


def of_base(connection: Connection, dataset: Dataset, number: int, definition: Definition) -> Sequence[JobState]:
    """The jobs of the version that another is made from; none if a source was taken out since, with its retries."""
    if not number:
        return ()
    had = dataset_records.version(connection, dataset, number).definition
    is_there = set(had.labels) <= set(definition.labels) and set(had.jobs) <= set(definition.jobs)
    return dataset_records.jobs(connection, dataset.id, number) if is_there else ()


def check(connection: Connection, dataset: Dataset, *, while_running: bool) -> None:
    """Raises Conflict if a label matches no job, if there is no job at all, or if one has not ended."""
    tenant_id, definition = dataset.tenant_id, dataset.definition
    values = _values(tenant_id, definition)
    unmatched = connection.execute(_UNMATCHED, values).scalar_one_or_none()
    if unmatched is not None:
        label = definition.labels[unmatched - 1]
        raise Conflict(
            f"No job has the label {label}; submit one with it, or take the label out of the dataset.",
            "nothing_to_export",
        )
    jobs = _there(connection, dataset)
    if not jobs:
        if definition.jobs or definition.labels:
            message = "No job of the dataset is there, or none has the statuses that its filters ask for: add others."
            raise Conflict(message, "nothing_to_export")
        raise Conflict("The dataset has no source: add jobs or labels.", "nothing_to_export")
    running = _unfinished(jobs)
    if running and not while_running:
        raise Conflict(
            f"{ids.public_job(running[0].id)} is {running[0].state}; wait for it, or ask for a version while it is "
            "running.",
            "job_not_finished",
        )


def are_running(connection: Connection, dataset: Dataset) -> bool:
    """Whether any job of the dataset has not ended."""
    return bool(_unfinished(_there(connection, dataset)))


def _there(connection: Connection, dataset: Dataset) -> list[SourceJob]:
    before = of_base(connection, dataset, dataset.version, dataset.definition)
    return find(connection, dataset.tenant_id, dataset.definition, before, with_marks=False)


def _unfinished(jobs: Sequence[SourceJob]) -> list[SourceJob]:
    return [job for job in jobs if job.state not in states.FINAL_JOB_STATES]


def gone(definition: Definition, found: Sequence[SourceJob]) -> list[str]:
    """The ids of the dataset's jobs that are not there any more, or have another status."""
    there = {ids.public_job(job.id) for job in found}
    return [job for job in definition.jobs if job not in there]


def lock(connection: Connection, found: Sequence[SourceJob]) -> bool:
    """Keeps the jobs from being deleted until the commit. False: one was deleted meanwhile."""
    jobs = [job.id for job in found]
    return bool(connection.execute(_LOCK, {"jobs": jobs}).scalar_one() == len(jobs))


def _values(tenant_id: int, definition: Definition) -> dict[str, Any]:
    labels = [label.partition(":") for label in definition.labels]
    return {
        "tenant_id": tenant_id,
        "jobs": [ids.parse_job(job) for job in definition.jobs],
        "labels": [json.dumps({name: value}) for name, _, value in labels],
    }


def rejected(connection: Connection, job_id: int, first: int, end: int) -> Iterable[int]:
    """The indexes among these of the job's images that are marked as rejected."""
    return connection.execute(_REJECTED, {"job_id": job_id, "first": first, "end": end}).scalars()


def known(connection: Connection, jobs: Iterable[int]) -> set[int]:
    """Those of these jobs that are still there."""
    return set(connection.execute(_KNOWN, {"jobs": list(jobs)}).scalars())


def check_named(connection: Connection, jobs: Sequence[str]) -> None:
    """Raises NotFound if the tenant's transaction does not see one of these jobs."""
    there = known(connection, {ids.parse_job(job) for job in jobs}) if jobs else set()
    for job in jobs:
        if ids.parse_job(job) not in there:
            raise NotFound(f"There is no job {job}.")
