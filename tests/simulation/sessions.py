"""Sessions of the simulation: what each transaction of a program sets anew is set once, and each statement is planned
once. A transaction sets only what differs from one to the next."""

from typing import Any

from psycopg._preparing import PrepareManager
from sqlalchemy import event

from services.core.db import sessions
from services.core.db.database import Database
from tests.simulation.clock import PATH, Clock

_LOCK_TIMEOUT = "3ms"  # one thread: whoever waits for a lock waits for a transaction that only it can end
_STATEMENTS = 1_000  # more than there are


class _Kept(PrepareManager):
    """Keeps prepared statements after a rollback, which many steps end with. Nothing is dropped here that they need."""

    def clear(self) -> bool:
        return False


class VirtualOpening(sessions.Opening):
    """Opens transactions at the clock's time; each one is a tick later than the one before."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("simulation", nested_loops=True)
        self._clock = clock

    def text(self, server_version: int, tenant: int | None, actor: str = "", *, reads: bool = False) -> str:
        local = {"sim.now": self._clock.tick().isoformat(), "sim.started": self._clock.started.isoformat()}
        local |= {"app.actor": actor} if actor else {}
        local |= {} if tenant is None else {"role": sessions.TENANT_ROLE, "app.tenant": str(tenant)}
        settings = "".join(f"; SET LOCAL {name} = '{value}'" for name, value in local.items())
        access = " READ ONLY" if reads else ""
        return f"SHOW transaction_read_only; BEGIN ISOLATION LEVEL READ COMMITTED{access}{settings}"


def install(database: Database, clock: Clock) -> None:
    """Makes every transaction of `database` one in virtual time. It must not have been used yet."""
    lasting = sessions.Opening("simulation", nested_loops=True)

    def opened(driver: Any, _record: Any) -> None:
        driver._prepared = _Kept()
        driver.prepare_threshold, driver.prepared_max = 1, _STATEMENTS
        driver.execute(_for_good(lasting.text(driver.info.server_version, None)))

    event.listen(database._engine, "connect", opened)
    database._opening = VirtualOpening(clock)


def _for_good(opening: str) -> str:
    """The settings of the text that opens a transaction, for the whole session."""
    settings = [part.replace("SET LOCAL", "SET") for part in opening.split("; ") if part.startswith("SET LOCAL")]
    return "; ".join([*settings, f"SET search_path = {PATH}", f"SET lock_timeout = '{_LOCK_TIMEOUT}'"])
