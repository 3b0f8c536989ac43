"""Retries failed images, all or some, in a new job that is linked to the old one; the old job stays finished.

The database copies the rows, so this process needs no memory for them. Seeds, shapes, custom_ids and the model's
revision are copied. Consecutive failed images of a request become one request of the new job; so a request with gaps
between them becomes several with the same custom_id.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns, deadlines, partitions
from services.core.db.statements import statement
from services.core.jobs import drafts, idempotency, inputs
from services.core.model import ids, requests, states
from services.core.model.errors import NEVER_RETRIED, Conflict, NotFound
from services.core.model.licenses import License
from services.core.model.states import ImageState
from services.core.policy.policies import NOT_ACCEPTED, Policy
from services.core.queue import images, job_states, segments
from services.core.queue.images import Refused

# FOR SHARE: nobody deletes the job while its requests are copied.
_PARENT = statement("retry.parent")("""
SELECT state, priority, labels, dedupe, embed_prompt, retention, in_shards, payloads_erased_at
FROM jobs WHERE id = :id AND tenant_id = :tenant_id FOR SHARE
""")
# The columns of a payload that differ in the new job; every other column is copied.
_CHANGED = {
    "job_id": ":child",
    "index": "sum(run.n) OVER (ORDER BY run.first) - run.n",
    "n": "run.n",
    "seed": columns.image_seed_sql("p.seed", "run.first - p.index"),
}
_COPIED = ", ".join(_CHANGED.get(column.name, f"p.{column.name}") for column in columns.PAYLOAD)
_RUNS = f"""
INSERT INTO {{payloads_leaf}} ({columns.names(columns.PAYLOAD)})
SELECT {_COPIED}
FROM (
  SELECT request, min(index) AS first, count(*)::integer AS n FROM (
    SELECT i.index, p.index AS request, i.index - row_number() OVER (PARTITION BY p.index ORDER BY i.index) AS island
    FROM images i
    {columns.payload_of("i")}
    WHERE i.job_id = :parent AND i.state = ANY(:states)
      AND (CAST(:indexes AS integer[]) IS NULL OR i.index = ANY(CAST(:indexes AS integer[])))
      AND (CAST(:cause AS text) IS NULL OR :cause = (
        SELECT code FROM failures f WHERE f.job_id = i.job_id AND f.index = i.index ORDER BY id DESC LIMIT 1))
      AND i.index NOT IN (SELECT f.index FROM failures f WHERE f.job_id = :parent AND f.code = ANY(:never))
  ) failed GROUP BY request, island
) run JOIN payloads p ON p.job_id = :parent AND p.index = run.request
"""  # noqa: S608  our own text
_COUNT = statement("retry.count")(
    "SELECT count(*) AS requests, coalesce(sum(n), 0) AS images FROM payloads WHERE job_id = :child"
)

_PROMPTS = statement("retry.prompts")("""
SELECT index AS first, n, prompt FROM payloads WHERE job_id = :job_id AND index > :after ORDER BY index LIMIT :limit
""")
_REFUSED = statement("retry.refused")(
    "SELECT count(DISTINCT index) FROM failures WHERE job_id = :job_id AND code = ANY(:codes)"
)
_LICENSES = statement("retry.licenses")("""
SELECT DISTINCT m.name, m.license FROM segments s JOIN models m ON m.revision = s.model_revision
WHERE s.job_id = :job_id AND m.license IS NOT NULL
""")
_PROMPTS_AT_ONCE = 1_024


@dataclass(frozen=True, slots=True)
class RetryResult:
    """The new job and the names of its models. `replayed`: this Idempotency-Key had already created it."""

    job_id: int
    models: list[str]
    replayed: bool = False


def retry(
    connection: Connection,
    tenant_id: int,
    parent_id: int,
    asked: requests.RetryOptions,
    *,
    policy: Policy,
    idempotency_key: str | None = None,
) -> RetryResult:
    """Queues a new job with the images that failed, or those of them that are asked for, and, if asked for, those that
    were cancelled. Images that a content policy refused are not tried again, and those whose prompts it refuses now are
    failed in the new job.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: the job has not finished, or none of its images failed, or none of those that are asked for.
        IdempotencyConflict, IdempotencyGone, IdempotencyBusy: the key was used for another request or for what is
            deleted, or is in use right now.
    """
    parent, child = lock_parent(connection, tenant_id, parent_id), ids.new()
    if idempotency_key is not None:
        digest = idempotency.digest("retry", parent_id, asked.model_dump(exclude=_not_set(asked)))
        known = idempotency.remember(connection, tenant_id, idempotency_key, sha256=digest, thing=child)
        if known is not None:
            return RetryResult(known, [], replayed=True)
    if parent.state not in states.FINAL_JOB_STATES:
        message = f"The job is {parent.state}; what failed of it can be tried again once it has finished."
        raise Conflict(message, "job_not_finished")
    wanted = [ImageState.FAILED, *([ImageState.CANCELLED] if asked.include_cancelled else [])]
    priority = parent.priority if asked.priority is None else requests.PRIORITIES[asked.priority]
    labels = parent.labels if asked.labels is None else asked.labels
    create_child(connection, tenant_id, parent_id, parent, child, priority=priority, labels=labels)
    values = {"parent": parent_id, "child": child}
    deadlines.lift(connection)
    runs = statement("retry.runs")(_RUNS.format(payloads_leaf=partitions.leaf(connection, "payloads", child)))
    which = {"cause": asked.cause, "indexes": asked.indexes, "never": list(NEVER_RETRIED)}
    connection.execute(runs, values | which | {"states": [int(state) for state in wanted]})
    count = connection.execute(_COUNT, {"child": child}).one()
    if not count.images:
        words = " or ".join(f"was {state.word}" if state is ImageState.CANCELLED else state.word for state in wanted)
        those = "None of these images" if asked.cause or asked.indexes else "No image of the job"
        refused = "" if count_refused(connection, parent_id) == 0 else " but for what a content policy refused"
        raise Conflict(f"{those} {words}{refused}: there is nothing to try again.", "nothing_to_retry")
    job_states.grow(connection, child, images=count.images, requests=count.requests)
    return RetryResult(child, open_child(connection, parent_id, child, priority=priority, policy=policy))


def count_refused(connection: Connection, job_id: int) -> int:
    """How many images of the job a content policy refused."""
    return int(connection.execute(_REFUSED, {"job_id": job_id, "codes": list(NEVER_RETRIED)}).scalar_one())


def lock_parent(connection: Connection, tenant_id: int, parent_id: int) -> Any:
    """The job's state, priority, labels and options; nobody deletes it meanwhile. Raises NotFound,
    or Conflict: its prompts are erased."""
    parent = connection.execute(_PARENT, {"id": parent_id, "tenant_id": tenant_id}).one_or_none()
    if parent is None:
        raise NotFound("There is no such job.")
    if parent.payloads_erased_at is not None:
        raise Conflict("The job's prompts were erased by the retention rules; submit them anew.", "payloads_erased")
    return parent


def create_child(
    connection: Connection, tenant_id: int, parent_id: int, parent: Any, child_id: int, *, priority: int,
    labels: dict[str, str],
) -> None:  # fmt: skip
    """Records the new job as an empty draft, with the locked parent's options."""
    drafts.create(
        connection, tenant_id, child_id, priority=priority, labels=labels, dedupe=parent.dedupe,
        embed_prompt=parent.embed_prompt, parent_id=parent_id, retention=parent.retention,
        in_shards=parent.in_shards,
    )  # fmt: skip


def open_child(connection: Connection, parent_id: int, child_id: int, *, priority: int, policy: Policy) -> list[str]:
    """Queues the new job, whose requests have been copied from its parent. Images whose prompts the content policy
    refuses now are failed. Returns the names of its models.

    Raises:
        Conflict: the licence of a model has not been accepted.
    """
    inputs.inherit(connection, parent_id=parent_id, child_id=child_id)
    segments.inherit(connection, parent_id=parent_id, child_id=child_id, priority=priority)
    if policy.requires_licenses:
        for row in connection.execute(_LICENSES, {"job_id": child_id}):
            if (why := policy.license_refusal(row.name, License.from_json(row.license))) is not None:
                raise Conflict(why, NOT_ACCEPTED)
    refused = _refused(connection, child_id, policy)
    images.spread(connection, child_id, refused=refused, door=policy.door if refused else None)
    return drafts.open_all(connection, child_id)


def _refused(connection: Connection, job_id: int, policy: Policy) -> list[Refused]:
    found: list[Refused] = []
    after = -1
    while policy.looks:
        values = {"job_id": job_id, "after": after, "limit": _PROMPTS_AT_ONCE}
        rows = connection.execute(_PROMPTS, values).all()
        verdicts = policy.refusals([row.prompt for row in rows])
        found += [
            Refused(row.first, row.n, f"The prompt {refusal}.")
            for row, refusal in zip(rows, verdicts, strict=True)
            if refusal is not None
        ]
        if len(rows) < _PROMPTS_AT_ONCE:
            break
        after = rows[-1].first
    return found


def _not_set(asked: requests.RetryOptions) -> set[str]:
    """The fields that keys of the release before do not cover."""
    return {name for name in ("cause", "indexes") if getattr(asked, name) is None}
