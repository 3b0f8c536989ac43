"""All access to Postgres: the engine, transactions, the translation of its errors, and the checks at start.

Every transaction sees either the rows of one tenant (`begin`) or all rows (`begin_system`). One that only reads is
opened with `read` or `read_system`: for one job's rows it asks one week's partition, where the others ask every week's.

Sessions of the queue plan only nested loops over indexes: their statements touch a few rows in tables of millions, and
a wrong estimate by the planner must never lead to a scan.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import alembic.command
from sqlalchemy import Connection as Connection  # noqa: PLC0414  for the packages that may not import sqlalchemy
from sqlalchemy import create_engine, event, exc, make_url, text
from sqlalchemy.engine import ExceptionContext

from services.core import environment
from services.core.db import actors, deadlines, deferred, revisions, sessions
from services.core.db.statements import statement
from services.core.model.errors import (
    Conflict,
    DatabaseReadOnly,
    DatabaseUnavailable,
    SettingsError,
    UnsuitableDatabase,
)

_REQUIRED = {"fsync": "on", "full_page_writes": "on", "server_encoding": "UTF8"}
_DURABLE = {"on", "remote_apply", "remote_write", "local"}
_TRY_AGAIN = {"40001", "40P01", "55P03", "57014"}  # serialization, deadlock, lock timeout, statement timeout
_READ_ONLY = "25006"
_UNFIT = {_READ_ONLY, "26000", "42P05"}  # the second and third: a prepared statement is missing, or there already
_NO_RIGHT = "42501"
_STALE_PLAN = "RevalidateCachedQuery"  # a table has changed: "cached plan must not change result type"

_ANY_TENANTS = statement("database.any_tenants")("SELECT EXISTS (SELECT FROM tenants)")
_SERVES_TENANTS = statement("database.serves_tenants")("SELECT has_table_privilege('api_keys', 'SELECT')")


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
        self._opening = sessions.Opening(application, nested_loops=nested_loops)
        options = sessions.connect_options(make_url(driver_url(url)))
        self._engine = create_engine(
            driver_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            hide_parameters=True,  # of an error: they are prompts, too
            connect_args=options | {"application_name": application, "autocommit": True},
        )
        deadlines.limit(self._engine, answer_seconds)
        event.listen(self._engine, "connect", lambda driver, _: sessions.greet(driver))
        event.listen(self._engine, "handle_error", _discard_unfit_session)

    def begin(self, tenant: int) -> AbstractContextManager[Connection]:
        """One transaction that sees only `tenant`'s rows; committed at the end. Raises as `begin_system` does."""
        return self._begin(tenant)

    def begin_system(self) -> AbstractContextManager[Connection]:
        """One transaction that sees every tenant's rows; committed at the end. For workers and schedulers, and for what
        the API reads before it knows the tenant.

        Raises:
            DatabaseReadOnly: the server takes no writes; nothing has happened.
            DatabaseUnavailable: the server cannot be reached or gave up. The commit may or may not have happened.
        """
        return self._begin(None)

    def read(self, tenant: int) -> AbstractContextManager[Connection]:
        """As `begin`, for what neither writes nor locks rows: a statement that does raises DBAPIError."""
        return self._begin(tenant, reads=True)

    def read_system(self) -> AbstractContextManager[Connection]:
        """As `begin_system`, for what neither writes nor locks rows: a statement that does raises DBAPIError."""
        return self._begin(None, reads=True)

    @contextmanager
    def _begin(self, tenant: int | None, *, reads: bool = False) -> Iterator[Connection]:
        try:
            with self._open(tenant, reads=reads) as connection:
                deferred.clear(connection)
                yield connection
                deferred.run(connection)
                connection.commit()  # also of one that reads: at a rollback the driver drops its prepared statements
        except exc.DBAPIError as error:
            if _is_outage(error):
                raise DatabaseUnavailable(f"The database cannot be reached: {_first_line(error)}") from error
            raise
        except exc.TimeoutError as error:
            raise DatabaseUnavailable("All connections to the database are in use.") from error

    def _open(self, tenant: int | None, *, reads: bool) -> Connection:
        """Begins a transaction. A session of the pool that was cut off while it was idle, or that has become read-only,
        is discarded, and the next one is tried: nothing has happened in the transaction yet."""
        while True:
            connection = self._engine.connect()
            is_new = "used" not in connection.info
            connection.info.update(used=True, reads=reads)
            try:
                if self._begins(connection, tenant, reads=reads):
                    return connection
                connection.invalidate()
            except exc.DBAPIError as error:
                if is_new or not error.connection_invalidated:
                    connection.close()
                    raise
            except BaseException:
                connection.close()
                raise
            connection.close()
            if is_new:
                raise DatabaseReadOnly

    def _begins(self, connection: Connection, tenant: int | None, *, reads: bool) -> bool:
        """Begins the transaction. False: the session is read-only."""
        driver = connection.connection.driver_connection
        assert driver is not None
        opening = self._opening.text(driver.info.server_version, tenant, actors.current(), reads=reads)
        return bool(connection.exec_driver_sql(opening).scalar_one() == "off")

    def close(self) -> None:
        self._engine.dispose()

    def forget(self) -> None:
        """For the child of a fork: drops the parent's connections without closing them."""
        self._engine.dispose(close=False)


def _discard_unfit_session(context: ExceptionContext) -> None:
    """A session that has become read-only, or whose prepared statements no longer fit, never returns to the pool. In a
    transaction of `read`, a write is our own mistake."""
    code = getattr(context.original_exception, "sqlstate", None)
    if code == _READ_ONLY and context.connection is not None and context.connection.info.get("reads"):
        return
    routine = getattr(getattr(context.original_exception, "diag", None), "source_function", None)
    if code in _UNFIT or routine == _STALE_PLAN:
        context.is_disconnect = True


def _is_outage(error: exc.DBAPIError) -> bool:
    code = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or code in _TRY_AGAIN:
        return True
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return code is None or code[:2] in ("08", "53", "57", "58")
    return False


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
    _assert_roles(database, role[0])
    warnings = [schema_warning] if schema_warning else []
    if role[1]:
        warnings.append(f"The role {role[0]} bypasses row-level security; let the application connect as a plain role.")
    return warnings


def _assert_roles(database: Database, role: str) -> None:
    """Checks that the role sees every tenant's rows, and only a tenant's in a tenant's transaction. Of the second no
    check is made if it may not read keys, as schedulers and workers may not: then it acts for no tenant."""
    try:
        with database.begin_system() as connection:
            if not connection.execute(_ANY_TENANTS).scalar_one():
                raise UnsuitableDatabase(
                    f"The role {role} does not see the application's rows; connect as presswork_app or as the tables' "
                    f"owner, or let an administrator run `GRANT presswork_app TO {role};`."
                )
            if not connection.execute(_SERVES_TENANTS).scalar_one():
                return
        with database.begin(0) as connection:
            if connection.execute(_ANY_TENANTS).scalar_one():
                raise UnsuitableDatabase(
                    f"The role {sessions.TENANT_ROLE} sees every tenant's rows; it must be no superuser, own nothing, "
                    "and have no BYPASSRLS."
                )
    except exc.DBAPIError as error:
        raise UnsuitableDatabase(
            f"The role {role} cannot act as {sessions.TENANT_ROLE} ({_first_line(error)}); let an administrator run "
            f"`GRANT {sessions.TENANT_ROLE} TO {role};`."
        ) from error


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
        owner = ". The role in DATABASE_URL must own the tables; `presswork up` migrates its own database."
        denied = getattr(error.orig, "sqlstate", "") == _NO_RIGHT
        raise Conflict(f"The database refused the migration: {_first_line(error)}{owner if denied else ''}") from error
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
