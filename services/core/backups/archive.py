"""What the database server says of its write-ahead log: without an archive of it no moment can be restored."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement

# Of pg_settings, since an administrator may hide what SHOW tells. The last failure counts if no success came after it.
_STATE = statement("archive.state")("""
SELECT (SELECT setting FROM pg_settings WHERE name = 'archive_mode') AS mode, last_archived_time AS archived_at,
  CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') THEN last_failed_time END AS failed_at,
  (SELECT count(*) FROM pg_stat_replication) AS receivers
FROM pg_stat_archiver
""")


@dataclass(frozen=True, slots=True)
class Archive:
    """`is_on`: each finished segment of the log is handed to a command. `failed_at`: that fails since then.
    `receivers`: how many replicas and receivers of the log are connected."""

    is_on: bool
    archived_at: datetime | None
    failed_at: datetime | None
    receivers: int

    @property
    def sentence(self) -> str:
        if self.failed_at is not None:
            return f"the write-ahead log cannot be archived since {self.failed_at:%Y-%m-%d %H:%M} UTC"
        if self.is_on:
            last = "nothing yet" if self.archived_at is None else f"last at {self.archived_at:%Y-%m-%d %H:%M} UTC"
            return f"the write-ahead log is archived, {last}"
        if self.receivers:
            return f"the write-ahead log is not archived, and streams to {self.receivers} receivers"
        return "the write-ahead log is not archived: only the moments of backups can be restored"


def state(connection: Connection) -> Archive:
    row = connection.execute(_STATE).one()
    return Archive(row.mode in ("on", "always"), row.archived_at, row.failed_at, row.receivers)
