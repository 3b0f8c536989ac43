"""The embedded stack: Postgres, Valkey and an S3 server in one folder, and the settings to reach them."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from services.core.model.errors import SettingsError
from services.core.settings import DATABASE_SCHEMES, Settings, check_address, reason
from services.local import running
from services.local.home import Home, is_sourced, write_env_file
from services.local.server import Server
from services.local.servers import Postgres, SeaweedFS, Valkey

__all__ = ["Stack", "write_env_file"]

log = logging.getLogger(__name__)

AWS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
PROGRAMS = ("web", "scheduler", "worker")
READY_SECONDS = 60.0


class Stack:
    """Starts a server for each of DATABASE_URL, REDIS_URL and AWS_ENDPOINT_URL that the environment does not give.

    The thread that calls `start` must live as long as the servers: they die with it.
    """

    def __init__(self, home: Path, environ: Mapping[str, str], say: Callable[[str], None] = log.info) -> None:
        self.home = Home(home)
        self.environ = dict(environ)
        self.say = say
        self.servers: list[Server] = []
        self.values: dict[str, str] = {}  # for whoever works here: they may do what the programs may
        self.programs: dict[str, dict[str, str]] = {name: {} for name in PROGRAMS}  # what each has of its own
        self.admin: dict[str, str] = {}  # REDIS_URL and the store's, for whoever may do everything there
        self.migrator_url = ""  # for a given database: PRESSWORK_MIGRATOR_URL, or else DATABASE_URL
        self.superuser_url = ""  # empty for a given database

    def start(self) -> dict[str, str]:
        """Returns once all servers answer real requests. If one fails, all are stopped and PressworkError is raised."""
        self.home.open()
        try:
            running.clear(self.home.folder)
            self._construct()
            for server in self.servers:  # each gets ready while the next is started
                server.start()
            running.record(self.home.folder, self.servers, {})
            for server in self.servers:
                server.wait_ready(READY_SECONDS)
        except BaseException:
            self.stop()
            raise
        return dict(self.values)

    def stop(self) -> None:
        """Stops all started servers together. May be called again, or before any was started."""
        for server in self.servers:
            server.begin_stop()
        for server in self.servers:
            server.finish_stop()
        if self.servers or self.values:
            running.forget(self.home.folder)
        self.servers, self.values = [], {}
        self.home.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _construct(self) -> None:
        """Creates the servers that the environment does not give, the one that starts slowest first."""
        given = {name: self._given(name) for name in ("DATABASE_URL", "REDIS_URL", *AWS, "PRESSWORK_SECRET")}
        given |= dict.fromkeys(self._own(given), "")
        classes: dict[str, type[Server]] = {
            "AWS_ENDPOINT_URL": SeaweedFS,
            "REDIS_URL": Valkey,
            "DATABASE_URL": Postgres,
        }
        embedded = [kind for variable, kind in classes.items() if not given[variable]]
        wanted = {name: second for kind in embedded for name, second in kind.wanted_ports().items()}
        ports = self.home.ports(wanted, self.say)
        self.values = {name: value for name, value in given.items() if value}
        for kind in embedded:
            self._add(kind, {name: ports[name] for name in kind.wanted_ports()})
        if "DATABASE_URL" in self.values and not self.migrator_url:
            migrator_url = self._given("PRESSWORK_MIGRATOR_URL")
            check_address("PRESSWORK_MIGRATOR_URL", migrator_url, *DATABASE_SCHEMES)
            self.migrator_url = migrator_url or self.values["DATABASE_URL"]
        self.values.setdefault("PRESSWORK_SECRET", self.home.secret("presswork"))

    def _add(self, kind: type[Server], ports: dict[str, int]) -> None:
        if kind is SeaweedFS:
            store = SeaweedFS(self.home, ports, self._given("PRESSWORK_BUCKET") or Settings.default("PRESSWORK_BUCKET"))
            self.values |= zip(AWS, (store.url, store.access_key, store.secret_key), strict=True)
            self.values["AWS_SESSION_TOKEN"] = ""  # one that was set for another store
            self.admin |= zip(AWS, (store.url, store.admin_access_key, store.admin_secret_key), strict=True)
            self.servers.append(store)
        elif kind is Valkey:
            redis = Valkey(self.home, ports)
            self._give("REDIS_URL", redis.url)
            self.admin["REDIS_URL"] = redis.admin_url
            self.servers.append(redis)
        else:
            postgres = Postgres(self.home, ports)
            self._give("DATABASE_URL", postgres.url)
            self.superuser_url, self.migrator_url = postgres.superuser_url, postgres.migrator_url
            self.servers.append(postgres)

    def _give(self, variable: str, url: Callable[[str], str]) -> None:
        self.values[variable] = url("app")
        for name, own in self.programs.items():
            own[variable] = url(name)

    def _own(self, given: Mapping[str, str]) -> list[str]:
        """Variables that a shell sourced from an env file. They name embedded servers, not external ones."""
        own = [name for name, value in given.items() if self.home.owns(value)]
        others = [name for name in given if name not in own and is_sourced(given[name], self.environ)]
        if others:
            self.say("this shell has sourced the env file of another stack; this one starts servers of its own")
        found = own + others
        return [*found, *AWS] if "AWS_SECRET_ACCESS_KEY" in found else found

    def _given(self, name: str) -> str:
        """The variable's value, given directly or as NAME_FILE."""
        path = self.environ.get(f"{name}_FILE")
        if not path:
            return self.environ.get(name, "")
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name}_FILE names {path!r}, which cannot be read: {reason(error)}.") from None
