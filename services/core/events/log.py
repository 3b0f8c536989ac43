"""The log of events. An event is written in the transaction that makes it true.

A statement that moves rows also logs them: `WITH moved AS (UPDATE ... RETURNING ...)` followed by one of the fragments
below. A fragment's arguments are SQL written in this code, never values. `subject` is a kind and an id, such as
`job/17`. `actor` is who acts (`db/actors.py`), or else the application name of the connection that wrote the event.
"""

import json
from collections.abc import Mapping

from sqlalchemy import Connection

from services.core.db.statements import statement

_INTO = "INSERT INTO events (tenant_id, actor, kind, subject, data) "
# Who acts, in SQL.
ACTOR = (
    "coalesce(nullif(current_setting('app.actor', true), ''), "
    "regexp_replace(current_setting('application_name'), '^presswork ', ''))"
)
_APPEND = statement("log.append")(f"{_INTO} VALUES (:tenant_id, {ACTOR}, :kind, :subject, CAST(:data AS jsonb))")
_APPEND_OF_JOB = statement("log.append_of_job")(f"""
{_INTO} SELECT tenant_id, {ACTOR}, :kind, 'job/' || id, CAST(:data AS jsonb) FROM jobs WHERE id = :job_id
""")  # noqa: S608  our own text


def append(
    connection: Connection, kind: str, subject: str, *, tenant_id: int | None, data: Mapping[str, object] | None = None
) -> None:
    """Logs one event. Without a tenant it is an event of the system, which no tenant sees."""
    values = {"tenant_id": tenant_id, "kind": kind, "subject": subject, "data": json.dumps(data or {})}
    connection.execute(_APPEND, values)


def append_of_job(connection: Connection, kind: str, job_id: int, data: Mapping[str, object] | None = None) -> None:
    """Logs one event about a job, for its tenant."""
    connection.execute(_APPEND_OF_JOB, {"kind": kind, "job_id": job_id, "data": json.dumps(data or {})})


def of_each(moved: str, kind: str, *, subject: str, data: str = "jsonb_build_object()") -> str:
    """The part of a statement that logs one event for each row of `moved`, which has a column `tenant_id`."""
    return f"{_INTO} SELECT tenant_id, {ACTOR}, {kind}, {subject}, {data} FROM {moved}"  # noqa: S608  our own text


def of_jobs(moved: str, kind: str, data: str = "jsonb_build_object()") -> str:
    """The same for jobs: `moved` has the columns `id` and `tenant_id`."""
    return of_each(moved, kind, subject="'job/' || id", data=data)
