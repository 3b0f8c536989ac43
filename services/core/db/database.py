"""All access to Postgres: the engine, transactions, the translation of its errors, and the checks at start.

Every transaction sees either the rows of one tenant (`begin`) or all rows (`begin_system`). Sessions of the queue plan
only nested loops over indexes: their statements touch a few rows in tables of millions, and a wrong estimate by the
planner must never lead to a scan.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import alembic.command
from sqlalchemy import Connection as Connection  # noqa: PLC0414  for the packages that may not import sqlalchemy
from sqlalchemy import create_engine, event, exc, make_url, text
from sqlalchemy.pool import ConnectionPoolEntry

from services.core import environment
from services.core.db import deadlines, revisions
from services.core.db.statements import statement
from services.core.model.errors import Conflict, DatabaseUnavailable, SettingsError, UnsuitableDatabase

SYSTEM = "*"
_REQUIRED = {"fsync": "on", "full_page_writes": "on", "server_encoding": "UTF8"}
_DURABLE = {"on", "remote_apply", "remote_write", "local"}
_TRY_AGAIN = {"40001", "40P01", "55P03", "57014"}  # serialization, deadlock, lock timeout, statement timeout


def driver_url(url: str) -> str:
    """The URL with Presswork's driver: postgres:// and postgresql:// mean psycopg. Raises SettingsError."""
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        raise SettingsError(
            "DATABASE_URL is not understood; it must be of the form postgresql://user:password@host:5432/presswork."
        ) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)


class Database:
    """A pool of connections. Threads may share it; a forked process must not (see `forget`)."""

    def __init__(
        self,
        url: str,
        *,
        application: str,
        pool_size: int = 5,
        nested_loops: bool = False,
        answer_seconds: float = deadlines.ANSWER_SECONDS,
    ) -> None:
        environment.forget("PG")  # libpq would take what our address does not say from there
        options = {
            "statement_timeout": "30s",
            "lock_timeout": "10s",
            "idle_in_transaction_session_timeout": "60s",
            # PostgreSQL 18.6 crashes (signal 11 in perform_pruning_base_step) if a statement that prunes partitions at
            # run time meets a row that was changed since its snapshot. Reading a few more partitions is cheap.
            "enable_partition_pruning": "off",
            # A page is read in the order of an index. On a table that the planner knows little about, it would rather
            # read all of a tenant's rows through a bitmap and sort them.
            "enable_bitmapscan": "off",
        }
        if nested_loops:
            options |= {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
        self._engine = create_engine(
            driver_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            isolation_level="READ COMMITTED",
            connect_args={
                "application_name": application,
                "connect_timeout": 5,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,
                "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
            },
        )
        deadlines.limit(self._engine, answer_seconds)
        event.listen(self._engine, "checkout", _become_system)

    def begin(self, tenant: int) -> AbstractContextManager[Connection]:
        """One transaction that sees only `tenant`'s rows; committed at the end. Raises as `begin_system` does."""
        return self._begin(tenant)

    def begin_system(self) -> AbstractContextManager[Connection]:
        """One transaction that sees every tenant's rows; committed at the end. For workers and schedulers, and for what
        the API reads before it knows the tenant.

        Raises:
            DatabaseUnavailable: the server cannot be reached or gave up. The commit may or may not have happened.
        """
        return self._begin(None)

    @contextmanager
    def _begin(self, tenant: int | None) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                if tenant is not None:
                    connection.execute(_SET_TENANT, {"tenant": str(int(tenant))})
                yield connection
        except exc.DBAPIError as error:
            if _is_outage(error):
                raise DatabaseUnavailable(f"The database cannot be reached: {_first_line(error)}") from error
            raise
        except exc.TimeoutError as error:
            raise DatabaseUnavailable("All connections to the database are in use.") from error

    def close(self) -> None:
        self._engine.dispose()

    def forget(self) -> None:
        """For the child of a fork: drops the parent's connections without closing them."""
        self._engine.dispose(close=False)


_SET_TENANT = statement("database.set_tenant")("SELECT set_config('app.tenant', :tenant, true)")


def _become_system(connection: object, entry: ConnectionPoolEntry, _proxy: object) -> None:
    """A new connection sees every tenant's rows; `begin(tenant)` narrows one transaction."""
    if "system" not in entry.info:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("SELECT set_config('app.tenant', %s, false)", (SYSTEM,))
        cursor.close()
        connection.commit()  # type: ignore[attr-defined]
        entry.info["system"] = True


def _is_outage(error: exc.DBAPIError) -> bool:
    code = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or code in _TRY_AGAIN:
        return True
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return code is None or code[:2] in ("08", "53", "57", "58")
    return code == "25006"  # read-only: a standby, in the middle of a failover


def _first_line(error: exc.DBAPIError) -> str:
    return str(error.orig).strip().split("\n")[0][:200]


def assert_suitable(database: Database) -> list[str]:
    """Checks what Presswork's promises rest on: durable commits, UTF-8, the schema's revision. Returns warnings.

    Raises:
        UnsuitableDatabase: with a setting of the server an accepted job could be lost, or the schema is not migrated.
    """
    with database.begin_system() as connection:
        for name, wanted in _REQUIRED.items():
            found = connection.execute(text(f"SHOW {name}")).scalar_one()  # names from _REQUIRED
            if found != wanted:
                raise UnsuitableDatabase(f"Postgres runs with {name} = {found}; Presswork needs {name} = {wanted}.")
        durable = connection.execute(text("SHOW synchronous_commit")).scalar_one()
        if durable not in _DURABLE:
            raise UnsuitableDatabase(f"Postgres runs with synchronous_commit = {durable}; Presswork needs it on.")
        schema_warning = revisions.check(connection)
        role = connection.execute(
            text("SELECT rolname, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
        ).one()
    warnings = [schema_warning] if schema_warning else []
    if role[1]:
        warnings.append(f"The role {role[0]} bypasses row-level security; let the application connect as a plain role.")
    return warnings


def migrate(url: str, revision: str = "head") -> str:
    """Brings the schema to a revision, the newest if none is named; safe to run in several processes at once. A newer
    schema stays as it is. Returns a sentence for people.

    Raises:
        DatabaseUnavailable: the server cannot be reached.
        Conflict: the database holds tables that are not Presswork's, or the role may not create tables.
        UnsuitableDatabase: the schema is newer and does not serve this program.
    """
    environment.forget("PG")
    config = revisions.configuration()
    config.attributes["url"] = url
    try:
        if warning := _newer(url):
            return warning
        alembic.command.upgrade(config, revision)
    except exc.OperationalError as error:
        raise DatabaseUnavailable(f"The database cannot be reached: {_first_line(error)}") from error
    except exc.ProgrammingError as error:
        raise Conflict(f"The database refused the migration: {_first_line(error)}") from error
    return f"The schema is at revision {revisions.known()[0] if revision == 'head' else revision}."


def _newer(url: str) -> str | None:
    """A sentence if the schema is newer than this program and serves it. Raises UnsuitableDatabase if it does not."""
    engine = create_engine(driver_url(url))
    try:
        with engine.connect() as connection:
            found = revisions.of(connection)
            return None if found is None or found in revisions.known() else revisions.check(connection)
    finally:
        engine.dispose()
