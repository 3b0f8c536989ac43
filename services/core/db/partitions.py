"""The weekly partitions of images, payloads and results: their names, and making them in advance."""

from datetime import timedelta

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model import ids

_MAKE_PARTITIONS = statement("partitions.make_partitions")(
    "SELECT presswork_make_partitions((now() AT TIME ZONE 'UTC')::date, :weeks)"
)

_DROP_PARTITIONS = statement("partitions.drop_partitions")("SELECT presswork_drop_partitions(:weeks)")
_LEAF = statement("partitions.leaf")("SELECT to_regclass(:name)")


def make_partitions(connection: Connection, weeks: int = 5) -> int:
    """Makes the partitions of this week and the next ones, `weeks` in all. Returns how many were missing."""
    return int(connection.execute(_MAKE_PARTITIONS, {"weeks": weeks}).scalar_one())


def drop_partitions(connection: Connection, weeks: int = 4) -> int:
    """Drops the partitions of up to `weeks` weeks whose jobs are all gone, or wait for just that. Returns how many
    tables that were. Gives up after a tenth of a second if somebody uses them."""
    return int(connection.execute(_DROP_PARTITIONS, {"weeks": weeks}).scalar_one())


def partition_name(table: str, job_id: int) -> str:
    """The name of the weekly partition for this job id, which ends in its Monday: `images_20261123`."""
    day = ids.moment(job_id).date()
    return f"{table}_{day - timedelta(days=day.weekday()):%Y%m%d}"


def leaf(connection: Connection, table: str, job_id: int) -> str:
    """The partition that holds the job's rows of that table: the default one if its week has none."""
    name = partition_name(table, job_id)
    known = connection.execute(_LEAF, {"name": name}).scalar_one()
    return name if known else f"{table}_default"
