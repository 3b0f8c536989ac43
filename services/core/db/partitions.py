"""The weekly partitions of images, payloads and results: their names, and the periodic task that makes them ahead."""

from datetime import timedelta

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model import ids

_MAKE_PARTITIONS = statement("partitions.make_partitions")(
    "SELECT presswork_make_partitions((now() AT TIME ZONE 'UTC')::date, :weeks)"
)

_LEAF = statement("partitions.leaf")("SELECT to_regclass(:name)")


def make_partitions(connection: Connection, weeks: int = 5) -> int:
    """Makes this week's partitions and those of the next ones; returns how many were missing."""
    return int(connection.execute(_MAKE_PARTITIONS, {"weeks": weeks}).scalar_one())


def partition_name(table: str, job_id: int) -> str:
    """The name of the weekly partition that the periodic task makes for this job id: `images_20261123`, its Monday."""
    day = ids.moment(job_id).date()
    return f"{table}_{day - timedelta(days=day.weekday()):%Y%m%d}"


def leaf(connection: Connection, table: str, job_id: int) -> str:
    """The partition that holds the job's rows of that table."""
    name = partition_name(table, job_id)
    known = connection.execute(_LEAF, {"name": name}).scalar_one()
    return name if known else f"{table}_default"
