"""Runs of catalogues: each compares the source with a version, has the differences rendered, and makes a new version.

queued -> submitting -> rendering -> reviewing -> writing -> published, or kept (the version is whole but a rule says
no), unchanged, planned (nothing but the plan was asked for), failed, cancelled. One run of a catalogue goes on at a
time, plans aside. Every write of `catalogue_runs`; functions take an open transaction and never commit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection

from services.core.catalogues.catalogues import Catalogue
from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound

State = Literal[
    "queued", "submitting", "rendering", "reviewing", "writing", "planned", "unchanged", "published", "kept", "failed",
    "cancelled"
]  # fmt: skip
FINAL = ("planned", "unchanged", "published", "kept", "failed", "cancelled")
LOOKED_AT = 30  # runs of a catalogue, for the newest one that is not for its plan alone
LIVE = ("queued", "submitting", "rendering", "reviewing", "writing")
_COLUMNS = (
    "id, tenant_id, catalogue_id, state, plan_only, accept_removed, definition, file_id, base, version, job_id, "
    "source, counts, position, error, deadline, cancel_requested_at, created_at, planned_at, rendered_at, "
    "finished_at, causes, redraw_jobs, list_key"
)
_SUBJECT = "'catalogue/' || (SELECT name FROM catalogues WHERE catalogues.id = catalogue_id)"
_DATA = "jsonb_build_object('run', CAST(:run AS text))"
_NEW = statement("catalogue_runs.new")(f"""
WITH made AS (
  INSERT INTO catalogue_runs (id, tenant_id, catalogue_id, state, plan_only, accept_removed, definition, file_id,
    deadline)
  VALUES (:id, :tenant_id, :catalogue_id, 'queued', :plan_only, :accept_removed, CAST(:definition AS jsonb), :file_id,
    :deadline)
  ON CONFLICT (catalogue_id) WHERE finished_at IS NULL AND NOT plan_only DO NOTHING
  RETURNING id, tenant_id, catalogue_id
)
{log.of_each("made", "'catalogue.run'", subject=_SUBJECT, data=_DATA)}
""")  # noqa: S608  our own text
_READ = statement("catalogue_runs.read")(f"SELECT {_COLUMNS} FROM catalogue_runs WHERE id = :id")  # noqa: S608  our own text
_HOLD = statement("catalogue_runs.hold")(f"{_READ.text} FOR NO KEY UPDATE")
_FIND = statement("catalogue_runs.find")(
    f"SELECT {_COLUMNS} FROM catalogue_runs WHERE id = :id AND catalogue_id = :catalogue_id"  # noqa: S608
)
_PAGE = statement("catalogue_runs.page")(f"""
SELECT {_COLUMNS} FROM catalogue_runs WHERE catalogue_id = :catalogue_id AND id < :before ORDER BY id DESC LIMIT :limit
""")  # noqa: S608  our own text
_THESE = statement("catalogue_runs.these")(
    f"SELECT {_COLUMNS} FROM unnest(CAST(:ids AS bigint[])) AS wanted (run_id) CROSS JOIN LATERAL "  # noqa: S608
    f"(SELECT {_COLUMNS} FROM catalogue_runs WHERE id = run_id OFFSET 0) found"
)
_NEWEST_OF = statement("catalogue_runs.newest_of")(f"""
SELECT {_COLUMNS} FROM unnest(CAST(:catalogue_ids AS bigint[])) AS wanted (of_catalogue) CROSS JOIN LATERAL (
  SELECT {_COLUMNS} FROM (
    SELECT {_COLUMNS} FROM catalogue_runs WHERE catalogue_id = of_catalogue ORDER BY id DESC LIMIT :most
  ) looked_at WHERE NOT plan_only ORDER BY id DESC LIMIT 1
) newest
""")  # noqa: S608  our own text
_LIVE = statement("catalogue_runs.live")(
    f"SELECT {_COLUMNS} FROM catalogue_runs WHERE catalogue_id = :catalogue_id AND finished_at IS NULL ORDER BY id"  # noqa: S608
)
_MOVE = statement("catalogue_runs.move")(f"""
WITH moved AS (
  UPDATE catalogue_runs SET state = :to, position = 0, counts = counts || CAST(:counts AS jsonb),
    error = coalesce(CAST(:error AS jsonb), error), causes = causes || CAST(:causes AS jsonb),
    planned_at = CASE WHEN state = 'queued' THEN now() ELSE planned_at END,
    rendered_at = CASE WHEN state = 'rendering' THEN now() ELSE rendered_at END,
    finished_at = CASE WHEN :is_final THEN now() END
  WHERE id = :id AND state = :before RETURNING id, tenant_id, catalogue_id, state
), logged AS (
  {log.of_each("moved", "'catalogue.run_' || state", subject=_SUBJECT, data=_DATA)} WHERE :is_final
)
SELECT count(*) FROM moved
""")  # noqa: S608  our own text
_PLAN = statement("catalogue_runs.plan")("""
UPDATE catalogue_runs SET base = :base, version = :version, job_id = :job_id, source = CAST(:source AS jsonb),
  list_key = :list_key
WHERE id = :id AND state = 'queued'
""")
_ADVANCE = statement("catalogue_runs.advance")(
    "UPDATE catalogue_runs SET position = :position WHERE id = :id AND state = :state AND position < :position"
)
_CANCEL = statement("catalogue_runs.cancel")(f"""
WITH moved AS (
  UPDATE catalogue_runs SET cancel_requested_at = now()
  WHERE id = :id AND catalogue_id = :catalogue_id AND finished_at IS NULL AND cancel_requested_at IS NULL
  RETURNING id, tenant_id, catalogue_id
)
{log.of_each("moved", "'catalogue.run_cancelling'", subject=_SUBJECT, data=_DATA)}
""")  # noqa: S608  our own text
_AWAIT_MARK = statement("catalogue_runs.await_mark")(
    "UPDATE catalogue_runs SET position = :position WHERE id = :id AND state = 'reviewing'"
)
_REDRAWN = statement("catalogue_runs.redrawn")(f"""
WITH moved AS (
  UPDATE catalogue_runs SET redraw_jobs = redraw_jobs || CAST(:job_id AS bigint),
    counts = counts || jsonb_build_object('superseded',
      coalesce(CAST(counts->>'superseded' AS integer), 0) + CAST(:superseded AS integer))
  WHERE id = :id AND state = 'reviewing' RETURNING id, tenant_id, catalogue_id
)
{
    log.of_each(
        "moved",
        "'catalogue.redrawn'",
        subject=_SUBJECT,
        data="jsonb_build_object('run', CAST(:run AS text), 'images', CAST(:images AS integer))",
    )
}
""")  # noqa: S608  our own text
# Catalogues with something to do: a run whose state is ours to work on, whose job has ended or is to be stopped, or
# whose review is over or waits for a picture that has got its mark, or could not be drawn again; something to tidy, and
# a version to copy elsewhere.
_PENDING = statement("catalogue_runs.pending")(
    turns.first_of_each("""
  SELECT id FROM (
    (SELECT r.catalogue_id AS id FROM catalogue_runs r
     WHERE r.tenant_id = t.id AND r.finished_at IS NULL AND r.catalogue_id <> ALL(CAST(:excluding AS bigint[]))
       AND (r.state NOT IN ('rendering', 'reviewing') OR r.cancel_requested_at IS NOT NULL
            OR (r.state = 'rendering' AND NOT EXISTS (
                  SELECT FROM jobs WHERE jobs.id = r.job_id AND jobs.finished_at IS NULL AND jobs.deleted_at IS NULL
                    AND (r.deadline IS NULL OR r.deadline > now() OR jobs.cancel_requested_at IS NOT NULL)))
            OR (r.state = 'reviewing' AND (r.deadline <= now() OR r.position = 0
                  OR EXISTS (
                    SELECT FROM catalogue_changes c WHERE c.run_id = r.id AND c.position = r.position - 1 AND (
                      EXISTS (SELECT FROM marks WHERE marks.job_id = coalesce(c.job_id, r.job_id)
                                AND marks.index = coalesce(c.index, c.position))
                      OR (c.job_id IS NOT NULL AND NOT EXISTS (
                            SELECT FROM jobs WHERE jobs.id = c.job_id AND jobs.deleted_at IS NULL
                              AND (jobs.finished_at IS NULL OR EXISTS (
                                SELECT FROM results WHERE results.job_id = c.job_id AND results.index = c.index)))))
                  ) OR NOT EXISTS (SELECT FROM jobs WHERE jobs.id = r.job_id AND jobs.deleted_at IS NULL))))
     ORDER BY r.id LIMIT :first)
    UNION
    (SELECT id FROM catalogues
     WHERE tenant_id = t.id AND tidy_from <= now() AND id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY tidy_from LIMIT :first)
    UNION
    (SELECT catalogue_id FROM catalogue_destinations
     WHERE tenant_id = t.id AND next_at <= now() AND catalogue_id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY next_at LIMIT :first)
  ) either ORDER BY random() LIMIT :first
""")
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run at one moment. `base` is the version that it is compared with (0: with nothing); `error` has a code and a
    message; `position` says how far the work of its state has come (in a review: 1 + the picture that it waits for, or
    0); `causes` how many changes have which code; `redraw_jobs` are those in which its review draws pictures again;
    `list_key` is that of the object that lists its pictures, if it was planned by this release and needs one."""

    id: int
    tenant_id: int
    catalogue_id: int
    state: State
    plan_only: bool
    accept_removed: bool
    definition: dict[str, Any]
    file_id: int | None
    base: int
    version: int | None
    job_id: int | None
    source: dict[str, Any]
    counts: dict[str, int]
    position: int
    error: dict[str, str] | None
    deadline: datetime | None
    cancel_requested_at: datetime | None
    created_at: datetime
    planned_at: datetime | None
    rendered_at: datetime | None
    finished_at: datetime | None
    causes: dict[str, int]
    redraw_jobs: list[int]
    list_key: str | None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


def public_id(run_id: int) -> str:
    return ids.public("run_", run_id)


def parse_id(public: str) -> int:
    """The inverse of `public_id`. Raises NotFound."""
    return ids.parse("run_", public, "run")


def begin(
    connection: Connection,
    catalogue: Catalogue,
    *,
    plan_only: bool = False,
    accept_removed: bool = False,
    deadline: datetime | None = None,
    run_id: int | None = None,
) -> int:
    """Queues a run of the catalogue as it is defined now. Returns its id, which is `run_id` if that is given.

    Raises Conflict: another run of the catalogue has not ended (`run_in_progress`).
    """
    run_id = ids.new() if run_id is None else run_id
    values = {
        "id": run_id, "run": public_id(run_id), "tenant_id": catalogue.tenant_id, "catalogue_id": catalogue.id,
        "plan_only": plan_only, "accept_removed": accept_removed, "definition": json.dumps(catalogue.definition),
        "file_id": catalogue.file_id, "deadline": deadline,
    }  # fmt: skip
    if not connection.execute(_NEW, values).rowcount:
        going = next((run for run in live(connection, catalogue.id) if not run.plan_only), None)
        which = f"The run {public_id(going.id)}" if going else "A run"
        message = f"{which} of the catalogue {catalogue.name} has not ended; wait for it, or cancel it."
        raise Conflict(message, "run_in_progress")
    return run_id


def find(connection: Connection, catalogue_id: int, run_id: int) -> Run:
    """The catalogue's run of that id. Raises NotFound."""
    row = connection.execute(_FIND, {"id": run_id, "catalogue_id": catalogue_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such run.")
    return Run(*row)


def read(connection: Connection, run_id: int) -> Run:
    return Run(*connection.execute(_READ, {"id": run_id}).one())


def hold(connection: Connection, run_id: int) -> Run:
    """The run, which stays in its state until the transaction ends."""
    return Run(*connection.execute(_HOLD, {"id": run_id}).one())


def page(connection: Connection, catalogue_id: int, *, before: int, limit: int) -> list[Run]:
    """The newest runs with an id below `before`."""
    rows = connection.execute(_PAGE, {"catalogue_id": catalogue_id, "before": before, "limit": limit})
    return [Run(*row) for row in rows]


def these(connection: Connection, run_ids: Sequence[int]) -> dict[int, Run]:
    """Those of these runs that there are, by id."""
    found = (Run(*row) for row in connection.execute(_THESE, {"ids": list(run_ids)}))
    return {run.id: run for run in found}


def newest_of(connection: Connection, catalogue_ids: Sequence[int]) -> dict[int, Run]:
    """The newest run of each catalogue that was not for its plan alone, among its last LOOKED_AT runs."""
    values = {"catalogue_ids": list(catalogue_ids), "most": LOOKED_AT}
    found = (Run(*row) for row in connection.execute(_NEWEST_OF, values))
    return {run.catalogue_id: run for run in found}


def live(connection: Connection, catalogue_id: int) -> list[Run]:
    """The catalogue's runs that have not ended, the oldest first."""
    return [Run(*row) for row in connection.execute(_LIVE, {"catalogue_id": catalogue_id})]


def cancel(connection: Connection, catalogue_id: int, run_id: int) -> None:
    """Asks the run to end; the published version stays. A second call is not an error.

    Raises:
        NotFound: no such run of this catalogue.
        Conflict: the run has ended.
    """
    if not connection.execute(_CANCEL, {"id": run_id, "run": public_id(run_id), "catalogue_id": catalogue_id}).rowcount:
        run = find(connection, catalogue_id, run_id)
        if run.is_final and run.state != "cancelled":
            raise Conflict(f"The run has ended: it is {run.state}.", "run_ended")


def cancel_any(connection: Connection, run_id: int) -> None:
    """As `cancel`, of whichever catalogue, in a transaction of the system."""
    cancel(connection, read(connection, run_id).catalogue_id, run_id)


def plan(connection: Connection, run: Run, *, base: int, version: int | None, job_id: int | None,
         source: Mapping[str, object], list_key: str | None = None) -> None:  # fmt: skip
    """Records what the run compares and makes, in the transaction that moves it on."""
    values = {"id": run.id, "base": base, "version": version, "job_id": job_id, "source": json.dumps(source)}
    connection.execute(_PLAN, values | {"list_key": list_key})


def move(
    connection: Connection,
    run: Run,
    to: str,
    *,
    counts: Mapping[str, int] | None = None,
    error: Mapping[str, str] | None = None,
    causes: Mapping[str, int] | None = None,
) -> bool:
    """Moves the run on from the state in which it was read. False: another has moved it."""
    values = {
        "id": run.id, "run": public_id(run.id), "before": run.state, "to": to, "is_final": to in FINAL,
        "counts": json.dumps(counts or {}), "error": None if error is None else json.dumps(error),
        "causes": json.dumps(causes or {}),
    }  # fmt: skip
    return bool(connection.execute(_MOVE, values).scalar_one())


def advance(connection: Connection, run: Run, position: int) -> None:
    """The state's work has been done for the changes before `position`."""
    connection.execute(_ADVANCE, {"id": run.id, "state": run.state, "position": position})


def await_mark(connection: Connection, run: Run, index: int) -> None:
    """The review waits for this picture: until it has a mark, nobody needs to look for others."""
    connection.execute(_AWAIT_MARK, {"id": run.id, "position": index + 1})


def redrawn(connection: Connection, run: Run, job_id: int, *, images: int, superseded: int) -> None:
    """A job draws so many pictures of the review again; so many of those that they replace had a mark."""
    values = {"id": run.id, "run": public_id(run.id), "job_id": job_id, "images": images, "superseded": superseded}
    connection.execute(_REDRAWN, values)


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Catalogues whose runs can go on, or that wait to be tidied or copied."""
    return turns.waiting(connection, _PENDING, excluding, busy)
