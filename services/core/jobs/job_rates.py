"""How fast a job's images were finished over time, from the row that every fold adds to (`queue/job_series.py`): it is
read by key, and is as long for a job of a million images as for one of ten."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.jobs import rates
from services.core.model.errors import NotFound
from services.core.queue import job_series

_OF_JOB = statement("job_rates.of_job")("""
SELECT c.series_at, c.series_seconds, c.series_done, c.series_failed, j.finished_at, now() AS as_of
FROM jobs j JOIN counters c ON c.job_id = j.id WHERE j.tenant_id = :tenant_id AND j.id = :job_id
""")


@dataclass(frozen=True, slots=True)
class JobPoint:
    """What of a job was finished in so many seconds from `at` on."""

    at: datetime
    seconds: float
    done: int
    failed: int

    @property
    def rate(self) -> float:
        """Images done or failed per second."""
        return (self.done + self.failed) / self.seconds


def of_job(connection: Connection, tenant_id: int, job_id: int) -> list[JobPoint]:
    """From when a worker first claimed images of the job until it finished, or until now; up to `job_series.MOST`
    points. None until images were finished. Raises NotFound."""
    row = connection.execute(_OF_JOB, {"tenant_id": tenant_id, "job_id": job_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such job.")
    if row.series_done is None:
        return []
    until = row.finished_at or row.as_of
    least = 1.0 if row.finished_at else min(row.series_seconds, rates.SOONEST)
    return _points(row.series_at, row.series_seconds, row.series_done, row.series_failed, until, least)


def _points(
    begin: datetime, seconds: int, done: Sequence[int], failed: Sequence[int], until: datetime, least: float
) -> list[JobPoint]:
    length = (until - begin).total_seconds()
    while length // seconds >= job_series.MOST:  # nothing was finished for long
        done, failed, seconds = _halved(done), _halved(failed), 2 * seconds
    points = max(len(done), int(length // seconds) + 1)
    done, failed = ([*counts, *(0 for _ in range(points - len(counts)))] for counts in (done, failed))
    return [
        JobPoint(
            begin + timedelta(seconds=nth * seconds),
            seconds if nth < points - 1 else max(least, min(seconds, length - nth * seconds)),
            done[nth],
            failed[nth],
        )
        for nth in range(points)
    ]


def _halved(counts: Sequence[int]) -> list[int]:
    return [sum(counts[nth : nth + 2]) for nth in range(0, len(counts), 2)]
