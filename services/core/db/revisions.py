"""The schema's revision and which programs it serves. Each release runs on its own schema and on that of the next.

The migrations note on the table `alembic_version` the oldest program that they serve, named by its newest revision. A
program that does not know the schema's revision is older than the schema; if it knows the noted one, it may run.
"""

import re
from functools import cache
from pathlib import Path

import alembic.config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from services.core.db.statements import statement
from services.core.model.errors import UnsuitableDatabase

_MIGRATIONS = Path(__file__).resolve().parents[3] / "migrations"
_NOTE = "serves programs from revision"
_NOTED = statement("revisions.noted")("SELECT obj_description('alembic_version'::regclass, 'pg_class')")


def configuration() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


@cache
def known() -> tuple[str, ...]:
    """The revisions that this program knows, the newest first."""
    scripts = ScriptDirectory.from_config(configuration())
    return tuple(script.revision for script in scripts.walk_revisions())


def of(connection: Connection) -> str | None:
    """The schema's revision. None: no migration has run."""
    return MigrationContext.configure(connection).get_current_revision()


def note(connection: Connection, oldest_program: str) -> None:
    """For migrations: notes the oldest program that the schema serves."""
    assert re.fullmatch(r"\w+", oldest_program)
    connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{_NOTE} {oldest_program}'"))


def check(connection: Connection) -> str | None:
    """Whether this program runs on the schema. Returns a warning if the schema is newer and serves it all the same.

    Raises:
        UnsuitableDatabase: it does not; the message says whether to migrate the schema or to upgrade the program.
    """
    found, newest = of(connection), known()[0]
    if found == newest:
        return None
    if found is None or found in known():
        raise UnsuitableDatabase(
            f"The database is at schema revision {found or 'none'} and this program needs {newest}; "
            "run `presswork migrate`."
        )
    noted = re.fullmatch(rf"{_NOTE} (\w+)", connection.execute(_NOTED).scalar_one() or "")
    ahead = f"The database is at schema revision {found}, which is newer than this program ({newest})"
    if noted is None or noted[1] not in known():
        raise UnsuitableDatabase(f"{ahead} and does not serve it any more; upgrade the program.")
    return f"{ahead} and still serves it; upgrade the program."
