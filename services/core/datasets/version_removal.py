"""The deletion of one version. It is hidden at once; what no other version holds is deleted by the background task.

The version's row stays, hidden, and so do the names of its shards: numbers and names are not given again. If it was the
last one, the next version is made from the one before: what it had closed is open again, and what was new in it stands
in no version.
"""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection

from services.core.datasets import dataset_records, datasets
from services.core.datasets.dataset_records import Version
from services.core.db.statements import statement
from services.core.events import log
from services.core.model.errors import Conflict

_HIDE = statement("version_removal.hide")(f"""
WITH moved AS (
  UPDATE dataset_versions SET deleted_at = now()
  WHERE dataset_id = :id AND number = :number AND finished_at IS NOT NULL AND deleted_at IS NULL
  RETURNING dataset_id, tenant_id, number
), current AS (
  UPDATE datasets SET updated_at = now(), version = coalesce((
    SELECT max(number) FROM dataset_versions
    WHERE dataset_id = :id AND state = 'completed' AND deleted_at IS NULL AND number <> :number), 0)
  WHERE id IN (SELECT dataset_id FROM moved)
)
{
    log.of_each(
        "moved",
        "'dataset.version_deleted'",
        subject="'dataset/' || (SELECT name FROM datasets WHERE datasets.id = dataset_id)",
        data="jsonb_build_object('version', number)",
    )
}
""")  # noqa: S608  our own text
_OPEN = statement("version_removal.open")("""
UPDATE dataset_shards SET until = NULL
WHERE dataset_id = :id AND since <= :current AND until > :current AND until <= :number
""")
_END = statement("version_removal.end")("""
UPDATE dataset_shards SET until = since WHERE dataset_id = :id AND since > :current AND since <= :number
""")
# The next version knows which jobs are one family, and looks at all of them.
_HAND_BACK = statement("version_removal.hand_back")("""
INSERT INTO dataset_jobs (dataset_id, number, job_id, tenant_id, root_id, is_final, marks, images, state, labels)
SELECT dataset_id, :current, job_id, tenant_id, root_id, false, '', 0, state, labels FROM dataset_jobs
WHERE dataset_id = :id AND number = :number
ON CONFLICT DO NOTHING
""")
_FORGET_JOBS = statement("version_removal.forget_jobs")(
    "DELETE FROM dataset_jobs WHERE dataset_id = :id AND number = :number"
)
_OVER = """
NOT EXISTS (
  SELECT FROM dataset_versions v
  WHERE v.dataset_id = s.dataset_id AND v.number >= s.since AND (s.until IS NULL OR s.until > v.number)
    AND v.deleted_at IS NULL AND (v.state = 'completed' OR v.finished_at IS NULL))
"""
_NEXT = statement("version_removal.next")(f"""
SELECT since, split, ordinal FROM dataset_shards s
WHERE dataset_id = :id AND since <= :number AND members <> '' AND {_OVER} ORDER BY since, split, ordinal LIMIT 1
""")  # noqa: S608  our own text
_FILES = "SELECT path, object_key FROM dataset_files WHERE dataset_id = :id AND since = :since AND {which} LIMIT :limit"
_OF_SHARD = statement("version_removal.of_shard")(_FILES.format(which="split = :split AND ordinal = :ordinal"))
_OWN = statement("version_removal.own")(_FILES.format(which="split IS NULL"))
_FORGET_FILES = statement("version_removal.forget_files")(
    "DELETE FROM dataset_files WHERE dataset_id = :id AND since = :since AND path = ANY(CAST(:paths AS text[]))"
)
_EMPTY_SHARD = statement("version_removal.empty_shard")("""
UPDATE dataset_shards SET members = ''
WHERE dataset_id = :id AND since = :since AND split = :split AND ordinal = :ordinal
""")
_DONE = statement("version_removal.done")("""
UPDATE dataset_versions SET is_stored = false, removed = NULL WHERE dataset_id = :id AND number = :number
""")


@dataclass(frozen=True, slots=True)
class Place:
    """A shard by its key."""

    since: int
    split: str
    ordinal: int


def remove(connection: Connection, tenant_id: int, name: str, number: int) -> None:
    """Hides the version at once.

    Raises:
        NotFound: no such dataset, or no such version.
        Conflict: it is being written, or another is being written from it.
    """
    dataset = datasets.locked(connection, tenant_id, name)
    found = dataset_records.version(connection, dataset, number)
    if found.finished_at is None:
        message = f"Version {number} of {dataset.name} is being written; cancel it, which leaves nothing of it."
        raise Conflict(message, "version_not_ended")
    unfinished = dataset_records.unfinished(connection, dataset)
    if unfinished is not None and dataset_records.version(connection, dataset, unfinished).base == number:
        message = f"Version {unfinished} of {dataset.name} is being written from it; wait for that, or cancel it."
        raise Conflict(message, "version_not_ended")
    connection.execute(_HIDE, {"id": dataset.id, "number": number})


def settle(connection: Connection, version: Version) -> None:
    """If no later version stands: makes the one before it the one that the next is made from."""
    current = version.dataset.version
    if current > version.number:
        return
    of = {"id": version.dataset.id, "number": version.number, "current": current}
    connection.execute(_OPEN, of)
    connection.execute(_END, of)
    if current and _has_its_sources(version):
        connection.execute(_HAND_BACK, of)
    connection.execute(_FORGET_JOBS, of)


def next_shard(connection: Connection, version: Version) -> Place | None:
    """A shard that no version holds any more, and whose files are to be deleted."""
    of = {"id": version.dataset.id, "number": version.number}
    row = connection.execute(_NEXT, of).one_or_none()
    return None if row is None else Place(*row)


def files(connection: Connection, version: Version, place: Place | None, *, limit: int) -> list[tuple[str, str]]:
    """Path and key of some files of a shard, or of those that describe the version."""
    of: dict[str, object] = {"id": version.dataset.id, "since": version.number, "limit": limit}
    rows = connection.execute(_OWN, of) if place is None else connection.execute(_OF_SHARD, of | asdict(place))
    return [(row.path, row.object_key) for row in rows]


def forget_files(connection: Connection, version: Version, place: Place | None, paths: list[str]) -> None:
    """Deletes the rows of files whose objects are deleted."""
    since = version.number if place is None else place.since
    connection.execute(_FORGET_FILES, {"id": version.dataset.id, "since": since, "paths": paths})


def emptied(connection: Connection, version: Version, place: Place) -> None:
    """Records that no file of the shard is left. Its name stays."""
    connection.execute(_EMPTY_SHARD, {"id": version.dataset.id} | asdict(place))


def done(connection: Connection, version: Version) -> None:
    """Records that nothing is stored for the version alone."""
    connection.execute(_DONE, {"id": version.dataset.id, "number": version.number})


def _has_its_sources(version: Version) -> bool:
    had, now = version.definition, version.dataset.definition
    return set(had.labels) <= set(now.labels) and set(had.jobs) <= set(now.jobs)
