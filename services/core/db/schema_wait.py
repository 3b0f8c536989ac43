"""Waits until another process has migrated the schema: for programs that are started together with the migration."""

import time

from sqlalchemy import exc

from services.core.db import database as databases
from services.core.model.errors import DatabaseUnavailable, UnsuitableDatabase

EVERY_SECONDS = 1.0


def wait(url: str, seconds: float) -> None:
    """Returns when the database serves this program and its role. Changes nothing. Raises UnsuitableDatabase if that
    takes longer; until then the server may be away, and database, role, tables and rights may be missing."""
    ends = time.monotonic() + seconds
    database = databases.Database(url, application="presswork migrate --wait", pool_size=1)
    try:
        while (trouble := _trouble(database)) is not None:
            if time.monotonic() >= ends:
                raise UnsuitableDatabase(f"The schema was not ready within {seconds:g} s: {trouble}")
            time.sleep(EVERY_SECONDS)
    finally:
        database.close()


def _trouble(database: databases.Database) -> str | None:
    try:
        databases.assert_suitable(database)
    except (DatabaseUnavailable, UnsuitableDatabase) as error:
        return str(error)
    except exc.DBAPIError as error:
        return str(error.orig).strip().split("\n")[0]
    return None
