"""Datasets and their versions: every write of their tables. `dataset_task` does the work.

Functions take an open transaction and never commit.
"""

import json
from collections.abc import Sequence

from sqlalchemy import Connection

from services.core.datasets import dataset_records, held, removals, source_jobs
from services.core.datasets.dataset_records import Dataset, HeldShard, Version
from services.core.datasets.definition import DatasetChanges, DatasetRequest, DatasetSources, Definition, check_sources
from services.core.datasets.planning import Planned
from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.exports.records import File
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound
from services.core.tenants import admission

_SUBJECT = "'dataset/' || name"
_OF_VERSION = "'dataset/' || (SELECT name FROM datasets WHERE datasets.id = dataset_id)"
_NUMBER = "jsonb_build_object('version', number)"
_NEW = statement("datasets.new")(f"""
WITH made AS (
  INSERT INTO datasets (id, tenant_id, name, format, definition)
  VALUES (:id, :tenant_id, :name, :format, CAST(:definition AS jsonb))
  ON CONFLICT (tenant_id, name) WHERE deleted_at IS NULL DO NOTHING RETURNING id, tenant_id, name
)
{log.of_each("made", "'dataset.created'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_LOCK = statement("datasets.lock")("""
SELECT id FROM datasets WHERE tenant_id = :tenant_id AND name = :name AND deleted_at IS NULL FOR NO KEY UPDATE
""")
_CHANGE = statement("datasets.change")(f"""
WITH moved AS (
  UPDATE datasets SET definition = CAST(:definition AS jsonb), updated_at = now() WHERE id = :id
  RETURNING id, tenant_id, name
)
{log.of_each("moved", "'dataset.changed'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_REMOVE = statement("datasets.remove")(f"""
WITH moved AS (
  UPDATE datasets SET deleted_at = now() WHERE tenant_id = :tenant_id AND name = :name AND deleted_at IS NULL
  RETURNING id, tenant_id, name
), stopped AS (
  UPDATE dataset_versions SET state = 'cancelled', finished_at = now()
  WHERE dataset_id IN (SELECT id FROM moved) AND finished_at IS NULL
)
{log.of_each("moved", "'dataset.deleted'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_NEW_VERSION = statement("datasets.new_version")(f"""
WITH numbered AS (
  UPDATE datasets SET last_number = last_number + 1 WHERE id = :id RETURNING id, tenant_id, last_number, version, name
), made AS (
  INSERT INTO dataset_versions (dataset_id, number, tenant_id, while_running, definition, base, base_url)
  SELECT id, last_number, tenant_id, :while_running, CAST(:definition AS jsonb), version, :base_url FROM numbered
  RETURNING dataset_id, tenant_id, number
), said AS (
  {log.of_each("made", "'dataset.version_asked'", subject=_OF_VERSION, data=_NUMBER)}
)
SELECT number FROM made
""")  # noqa: S608  our own text
_PLANNED = statement("datasets.planned")("""
UPDATE dataset_versions SET plan = CAST(:plan AS jsonb), removed = :removed, images = :images,
  images_to_write = :to_write, state = 'running'
WHERE dataset_id = :id AND number = :number AND finished_at IS NULL AND plan IS NULL
""")
_NEW_SHARD = statement("datasets.new_shard")("""
INSERT INTO dataset_shards (dataset_id, since, split, ordinal, tenant_id, replaces, images, members)
VALUES (:id, :number, :split, :ordinal, :tenant_id, :replaces, :images, :members)
""")
_NEW_JOB = statement("datasets.new_job")("""
INSERT INTO dataset_jobs (dataset_id, number, job_id, tenant_id, root_id, is_final, marks, images, state, labels)
VALUES (:id, :number, :job_id, :tenant_id, :root_id, :is_final, :marks, :images, :state, CAST(:labels AS jsonb))
""")
# The shard stands in versions before this one; if this one is not completed, it stands on.
_CLOSE = statement("datasets.close")("""
UPDATE dataset_shards SET until = :number
WHERE dataset_id = :id AND since = :since AND split = :split AND ordinal = :ordinal
""")
_REOPEN = statement("datasets.reopen")(
    "UPDATE dataset_shards SET until = NULL WHERE dataset_id = :id AND until = :number"
)
_ADVANCE = statement("datasets.advance")("""
UPDATE dataset_versions SET images_written = images_written + :images, bytes = bytes + :bytes, error = NULL
WHERE dataset_id = :id AND number = :number AND finished_at IS NULL
""")
_HELD_UP = statement("datasets.held_up")("""
UPDATE dataset_versions SET error = :error WHERE dataset_id = :id AND number = :number AND finished_at IS NULL
""")
_WRITTEN = statement("datasets.written")("""
UPDATE dataset_shards SET is_written = true
WHERE dataset_id = :id AND since = :number AND split = :split AND ordinal = :ordinal AND NOT is_written
""")
_FILE = statement("datasets.file")("""
INSERT INTO dataset_files (dataset_id, since, path, tenant_id, split, ordinal, bytes, sha256, images, object_key)
VALUES (:id, :number, :path, :tenant_id, :split, :ordinal, :bytes, :sha256, :images, :object_key)
""")
_COMPLETE = statement("datasets.complete")(f"""
WITH moved AS (
  UPDATE dataset_versions SET state = 'completed', finished_at = now(), total_bytes = :total_bytes
  WHERE dataset_id = :id AND number = :number AND finished_at IS NULL RETURNING dataset_id, tenant_id, number
), current AS (
  UPDATE datasets SET version = :number, updated_at = now() WHERE id IN (SELECT dataset_id FROM moved)
)
{log.of_each("moved", "'dataset.version_completed'", subject=_OF_VERSION, data=_NUMBER)}
""")  # noqa: S608  our own text
_ENDED = "CASE state WHEN 'failed' THEN 'dataset.version_failed' ELSE 'dataset.version_cancelled' END"
_END = statement("datasets.end")(f"""
WITH moved AS (
  UPDATE dataset_versions SET state = :state, error = :error, finished_at = now()
  WHERE dataset_id = :id AND number = :number AND finished_at IS NULL
  RETURNING dataset_id, tenant_id, number, state
)
{log.of_each("moved", _ENDED, subject=_OF_VERSION, data=_NUMBER)}
""")  # noqa: S608  our own text
_FORGET_JOBS = statement("datasets.forget_jobs")("DELETE FROM dataset_jobs WHERE dataset_id = :id AND number < :number")
_FORGET_FILES = statement("datasets.forget_files")("""
DELETE FROM dataset_files WHERE dataset_id = :id AND (path, since) IN (
  SELECT path, since FROM dataset_files
  WHERE dataset_id = :id AND (CAST(:number AS integer) IS NULL OR since = :number) LIMIT :limit)
""")
_FORGET_SHARDS = statement("datasets.forget_shards")(
    "DELETE FROM dataset_shards WHERE dataset_id = :id AND since = :number"
)
_FORGET_OWN_JOBS = statement("datasets.forget_own_jobs")(
    "DELETE FROM dataset_jobs WHERE dataset_id = :id AND number = :number"
)
_EMPTY = statement("datasets.empty")(
    "UPDATE dataset_versions SET is_stored = false WHERE dataset_id = :id AND number = :number"
)
_FORGET = statement("datasets.forget")("DELETE FROM datasets WHERE id = :id AND deleted_at IS NOT NULL")
_PENDING = statement("datasets.pending")(
    turns.first_of_each("""
  SELECT id FROM (
    (SELECT dataset_id AS id FROM dataset_versions
     WHERE tenant_id = t.id AND finished_at IS NULL AND dataset_id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY dataset_id LIMIT :first)
    UNION
    (SELECT dataset_id FROM dataset_versions
     WHERE tenant_id = t.id AND state IN ('failed', 'cancelled') AND is_stored
       AND dataset_id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY dataset_id LIMIT :first)
    UNION
    (SELECT dataset_id FROM dataset_versions
     WHERE tenant_id = t.id AND deleted_at IS NOT NULL AND is_stored
       AND dataset_id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY dataset_id LIMIT :first)
    UNION
    (SELECT id FROM datasets
     WHERE tenant_id = t.id AND deleted_at IS NOT NULL AND id <> ALL(CAST(:excluding AS bigint[]))
     ORDER BY id LIMIT :first)
  ) either ORDER BY random() LIMIT :first
""")
)
_READING = statement("datasets.reading")("""
SELECT min(d.name) FROM dataset_jobs j
JOIN dataset_versions v ON v.dataset_id = j.dataset_id AND v.number = j.number AND v.finished_at IS NULL
JOIN datasets d ON d.id = v.dataset_id
WHERE j.job_id = :job_id
""")


def create(connection: Connection, tenant_id: int, asked: DatasetRequest) -> None:
    """Records a dataset without a version. Raises Conflict: there is one of that name; NotFound: no such job."""
    source_jobs.check_named(connection, asked.jobs)
    values = {"id": ids.new(), "tenant_id": tenant_id, "name": asked.name, "format": asked.format}
    if not connection.execute(_NEW, values | {"definition": json.dumps(asked.definition())}).rowcount:
        raise Conflict(f"There is a dataset {asked.name} already; add to it, or choose another name.", "name_taken")


def add(connection: Connection, tenant_id: int, name: str, more: DatasetSources, *, remove: bool = False) -> None:
    """Adds sources, or takes them away. The next version follows.

    Raises:
        NotFound: no such dataset, or no such job.
        InvalidSubmission: it would have too many sources.
    """
    dataset = locked(connection, tenant_id, name)
    known = dataset.definition
    if remove:
        jobs = [job for job in known.jobs if job not in more.jobs]
        labels = [label for label in known.labels if label not in more.labels]
    else:
        source_jobs.check_named(connection, more.jobs)
        jobs, labels = (
            list(dict.fromkeys([*known.jobs, *more.jobs])),
            list(dict.fromkeys([*known.labels, *more.labels])),
        )
        check_sources(jobs, labels)
    _store(connection, dataset, known.model_copy(update={"jobs": jobs, "labels": labels}))


def change(connection: Connection, tenant_id: int, name: str, asked: DatasetChanges) -> None:
    """Sets other filters or types. The next version follows. Raises NotFound."""
    dataset = locked(connection, tenant_id, name)
    given = {field: value for field in ("filters", "types") if (value := getattr(asked, field)) is not None}
    _store(connection, dataset, dataset.definition.model_copy(update=given))


def remove(connection: Connection, tenant_id: int, name: str) -> None:
    """Hides the dataset at once; a version that is being written is stopped. Its objects and rows are deleted soon.
    Raises NotFound."""
    if not connection.execute(_REMOVE, {"tenant_id": tenant_id, "name": name}).rowcount:
        raise NotFound("There is no such dataset.")


def export(connection: Connection, tenant_id: int, name: str, *, while_running: bool, base_url: str) -> int:
    """Records a version that is to be written, and returns its number.

    Raises:
        NotFound: no such dataset.
        Conflict: a version is being written already, a job has not ended, or there is nothing to take images from.
        QuotaExceeded: the tenant's bytes stored are used up.
    """
    dataset = locked(connection, tenant_id, name)
    unfinished = dataset_records.unfinished(connection, dataset)
    if unfinished is not None:
        raise Conflict(
            f"Version {unfinished} of {name} is being written; wait for it, or cancel it.", "version_not_ended"
        )
    source_jobs.check(connection, dataset, while_running=while_running)
    admission.ask_storage(connection, tenant_id)
    values = {"id": dataset.id, "while_running": while_running, "base_url": base_url}
    return int(connection.execute(_NEW_VERSION, values | {"definition": _text(dataset.definition)}).scalar_one())


def cancel(connection: Connection, tenant_id: int, name: str, number: int) -> None:
    """Stops the version after the shard that is being written; what was stored for it is deleted. A second call is not
    an error.

    Raises:
        NotFound: no such version.
        Conflict: it has already completed or failed.
    """
    dataset = locked(connection, tenant_id, name)
    found = dataset_records.version(connection, dataset, number)
    if found.state in ("completed", "failed"):
        raise Conflict(
            f"Version {number} of {name} is {found.state}; only one at work can be cancelled.", "version_ended"
        )
    connection.execute(_END, {"id": dataset.id, "number": number, "state": "cancelled", "error": None})


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Datasets of which a version waits to be written, or something to be deleted."""
    return turns.waiting(connection, _PENDING, excluding, busy)


def reading(connection: Connection, job_id: int) -> str | None:
    """The name of a dataset of which a version is being written from the job's images."""
    return connection.execute(_READING, {"job_id": job_id}).scalar_one_or_none()


def begin(connection: Connection, version: Version, planned: Planned) -> bool:
    """Records the plan with its shards, and starts the version. False: it was cancelled, or one of its jobs is being
    deleted, so that it must be planned again."""
    if not source_jobs.lock(connection, planned.jobs):
        return False
    of = {"id": version.dataset.id, "number": version.number}
    values = {
        "plan": planned.plan.as_json(),
        "removed": removals.pack(planned.removed),
        "images": planned.plan.counted.images,
        "to_write": planned.to_write,
    }
    if not connection.execute(_PLANNED, of | values).rowcount:
        return False
    if planned.closed:
        connection.execute(
            _CLOSE,
            [of | {"since": shard.since, "split": shard.split, "ordinal": shard.ordinal} for shard in planned.closed],
        )
    of |= {"tenant_id": version.dataset.tenant_id}
    own: dict[str, object] = dict(of)
    if planned.new:
        connection.execute(
            _NEW_SHARD,
            [
                own
                | {
                    "split": shard.split,
                    "ordinal": shard.ordinal,
                    "replaces": shard.replaces,
                    "images": shard.images,
                    "members": held.pack(shard.held),
                }
                for shard in planned.new
            ],
        )
    fields = ("job_id", "root_id", "is_final", "marks", "images", "state")
    rows = ({field: getattr(one, field) for field in fields} for one in planned.states)
    connection.execute(
        _NEW_JOB,
        [own | row | {"labels": json.dumps(dict(one.labels))} for row, one in zip(rows, planned.states, strict=True)],
    )
    return True


def record(connection: Connection, version: Version, shard: HeldShard, files: list[File]) -> bool:
    """Records the files of a stored shard. False: the version was cancelled."""
    of = {"id": version.dataset.id, "number": version.number}
    if not _advance(connection, version, files, shard.images):
        return False
    place = {"split": shard.split, "ordinal": shard.ordinal}
    connection.execute(_WRITTEN, of | place)
    _store_files(connection, version, files, place)
    return True


def complete(connection: Connection, version: Version, files: list[File]) -> bool:
    """Records the files that describe the version, and makes it visible as a whole. False: it was cancelled."""
    of = {"id": version.dataset.id, "number": version.number}
    if not _advance(connection, version, files, 0):
        return False
    _store_files(connection, version, files, {"split": None, "ordinal": None})
    connection.execute(_COMPLETE, of | {"total_bytes": dataset_records.total_bytes(connection, *of.values())})
    connection.execute(_FORGET_JOBS, of)
    return True


def held_up(connection: Connection, version: Version, error: str) -> None:
    """Says why the version does not get on. It does once the cause is gone."""
    connection.execute(_HELD_UP, {"id": version.dataset.id, "number": version.number, "error": error})


def fail(connection: Connection, version: Version, error: str) -> None:
    """Ends the version as failed, with a sentence for users."""
    of = {"id": version.dataset.id, "number": version.number}
    connection.execute(_END, of | {"state": "failed", "error": error})


def forget_files(connection: Connection, dataset: Dataset, number: int | None, limit: int = 10_000) -> bool:
    """Deletes rows of files whose objects are deleted; `number` None: of every version. True: there may be more."""
    return connection.execute(_FORGET_FILES, {"id": dataset.id, "number": number, "limit": limit}).rowcount == limit


def forget_version(connection: Connection, version: Version) -> None:
    """Records that nothing is stored of a version that was not completed."""
    of = {"id": version.dataset.id, "number": version.number}
    for one in (_REOPEN, _FORGET_SHARDS, _FORGET_OWN_JOBS, _EMPTY):
        connection.execute(one, of)


def forget(connection: Connection, dataset: Dataset) -> None:
    """Deletes the rows of a deleted dataset."""
    connection.execute(_FORGET, {"id": dataset.id})


def locked(connection: Connection, tenant_id: int, name: str) -> Dataset:
    """The dataset, which nobody else changes until the commit. Raises NotFound."""
    connection.execute(_LOCK, {"tenant_id": tenant_id, "name": name})
    return dataset_records.find(connection, tenant_id, name)


def _store(connection: Connection, dataset: Dataset, definition: Definition) -> None:
    connection.execute(_CHANGE, {"id": dataset.id, "definition": _text(definition)})


def _text(definition: Definition) -> str:
    return json.dumps(definition.model_dump(mode="json", exclude_none=True))


def _advance(connection: Connection, version: Version, files: list[File], images: int) -> bool:
    values = {"id": version.dataset.id, "number": version.number, "images": images}
    return bool(connection.execute(_ADVANCE, values | {"bytes": sum(file.bytes for file in files)}).rowcount)


def _store_files(connection: Connection, version: Version, files: list[File], place: dict[str, object]) -> None:
    of = {"id": version.dataset.id, "number": version.number, "tenant_id": version.dataset.tenant_id} | place
    fields = ("path", "bytes", "sha256", "images", "object_key")
    connection.execute(_FILE, [of | {field: getattr(file, field) for field in fields} for file in files])
