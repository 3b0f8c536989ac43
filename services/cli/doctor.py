"""`presswork doctor`: checks the settings, servers and workers."""

from collections.abc import Callable
from contextlib import suppress

from rich.text import Text

from services.cli import profile, show
from services.core import notify
from services.core.db import database as databases
from services.core.db import leadership, roles
from services.core.fleet import workers
from services.core.jobs import queries
from services.core.model.errors import PressworkError
from services.core.settings import Settings
from services.core.storage import installation, s3


def run() -> int:
    """Prints a line for each check, and one for each server at which we may do too much. Returns 0 if all pass."""
    try:
        settings = profile.settings()
    except PressworkError as error:
        _bad("settings", error)
        return 1
    _line("settings", lambda: f"model {settings.model}, bucket {settings.bucket}, lease {settings.lease_seconds:g} s")
    core = databases.Database(settings.database_url, application="presswork doctor", pool_size=1)
    checks: dict[str, Callable[[], str]] = {
        "database": lambda: " ".join(databases.assert_suitable(core)) or "reached, durable, at the right schema",
        "redis": lambda: _redis(settings),
        "store": lambda: _store(core, settings),
        "scheduler": lambda: _scheduler(core),
        "workers": lambda: _workers(core),
        "model": lambda: _model(core, settings),
    }
    well = {name: _line(name, check) for name, check in checks.items()}
    if not any(well.values()) and _is_here(settings):
        _print("hint", "yellow", "nothing of the stack in this folder runs; `presswork up` starts it")
    surplus: dict[str, Callable[[], str]] = {
        "database": lambda: _database_surplus(core),
        "redis": lambda: notify.redis_surplus(settings.redis_url),
        "store": lambda: s3.S3Store(settings).surplus(),
    }
    for name, ask in surplus.items():
        if well[name]:
            _warn(name, ask)
    core.close()
    return 0 if all(well.values()) else 1


def _is_here(settings: Settings) -> bool:
    """Whether the settings are those of the stack in this folder."""
    with suppress(OSError):
        return settings.database_url in profile.env_file().read_text(encoding="utf-8")
    return False


class Starting(PressworkError):
    """What is checked is about to be well."""


def _line(name: str, check: Callable[[], str]) -> bool:
    try:
        _print("ok  ", "green", f"{name:<10} {check()}")
    except Starting as error:
        _print("wait", "yellow", f"{name:<10} {error}")
        return False
    except PressworkError as error:
        _bad(name, error)
        return False
    return True


def _warn(name: str, ask: Callable[[], str]) -> None:
    """A line about rights that the programs do not need. Nothing, if there are none or a server is away."""
    with suppress(PressworkError):
        if sentence := ask():
            _print("warn", "yellow", f"{name:<10} {sentence}")


def _bad(name: str, error: PressworkError) -> None:
    _print("BAD ", "red", f"{name:<10} {error}")


def _print(word: str, style: str, sentence: str) -> None:
    show.out().print(Text.assemble((word, style), " ", sentence), soft_wrap=True)


def _database_surplus(core: databases.Database) -> str:
    with core.begin_system() as connection:
        return roles.surplus(connection)


def _redis(settings: Settings) -> str:
    trouble = notify.redis_trouble(settings.redis_url)
    if trouble:
        raise PressworkError(trouble)
    return "takes wake-ups"


def _store(core: databases.Database, settings: Settings) -> str:
    store = s3.S3Store(settings)
    store.check()
    installation.claim_prefix(core, store)
    return f"bucket {settings.bucket} exists" + (f", prefix {settings.prefix}" if settings.prefix else "")


def _scheduler(core: databases.Database) -> str:
    with core.begin_system() as connection:
        if not leadership.exists(connection):
            raise PressworkError("No scheduler leads; start one with `python -m scheduler.app`.")
    return "one leads"


def _workers(core: databases.Database) -> str:
    with core.begin_system() as connection:
        fleet = [row for row in queries.fleet(connection) if row.silent < 15 and row.state in ("ready", "busy")]
        starting = workers.starting(connection)
    if starting and not fleet:
        raise Starting(f"A worker is starting: {starting[0]}.")
    if not fleet:
        raise PressworkError("No worker was seen in the last 15 s; start one with `python -m worker.app`.")
    return ", ".join(f"{row.host}:{row.pid} {row.device} {'drained' if row.drained else row.state}" for row in fleet)


def _model(core: databases.Database, settings: Settings) -> str:
    with core.begin_system() as connection:
        registered, _ = queries.readiness(connection, settings.model)
        starting = workers.starting(connection)
    if starting and not registered:
        raise Starting(f"The default model {settings.model!r} is registered once a worker has started.")
    if not registered:
        raise PressworkError(
            f"The default model {settings.model!r} is not registered; a worker that serves it does so."
        )
    return f"{settings.model} is registered"
