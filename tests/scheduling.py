"""What tests of schedules do: make one, let it fire, submit what is due, and look."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from scheduler.app import Scheduler
from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from scheduler.periodic_tasks import PeriodicTask
from services.core.db.connectivity import Connectivity
from services.core.db.database import Database
from services.core.notify import Notifier
from services.core.schedules import firing, runs, schedules
from services.core.schedules.asked import ScheduleRequest
from services.core.schedules.schedules import Schedule
from services.core.settings import Settings
from tests.cron_by_minutes import fires
from tests.factories import TENANT

MUG = {"job": {"images": [{"prompt": "a mug"}], "priority": "low", "labels": {"for": "shop"}}}
NIGHT = datetime(2027, 1, 5, 1, tzinfo=UTC)  # a Tuesday
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def submitter(database: Database, settings: Settings, holder: str = "scheduler-1") -> Callable[[], bool]:
    """Submits what is due, as a scheduler's threads do."""
    tasks = [task for task in background_tasks(settings, None, Notifier(settings.redis_url)) if task.name == "schedule"]
    return BackgroundTaskRunner(database, tasks, holder).run_once


def put(database: Database, settings: Settings, name: str = "nightly", **fields: Any) -> Schedule:
    asked = {"cron": "0 1 * * *", "target": MUG, **fields}
    if "at" in fields:
        del asked["cron"]
    request = ScheduleRequest.model_validate(asked)
    target = schedules.check(database, settings, TENANT, request.target, "http://x")
    with database.begin(TENANT) as connection:
        return schedules.put(connection, settings, TENANT, name, request, target, "http://x")


def first_at(database: Database, instant: datetime, name: str = "nightly") -> None:
    """As if the schedule had been made before that instant."""
    with database.begin_system() as connection:
        connection.execute(text("UPDATE schedules SET next_at = :at WHERE name = :name"), {"at": instant, "name": name})


def fire(database: Database, now: datetime) -> int:
    with database.begin_system() as connection:
        return firing.fire(connection, now)


def settle(database: Database) -> None:
    with database.begin_system() as connection:
        runs.settle(connection)


def end_jobs(database: Database) -> None:
    """All jobs end, as done ones do."""
    with database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET state = 'completed', finished_at = now() WHERE finished_at IS NULL"))
        runs.settle(connection)


def found(database: Database, name: str = "nightly") -> list[runs.Run]:
    """The runs, the oldest first."""
    with database.begin(TENANT) as connection:
        schedule = schedules.find(connection, TENANT, name)
        return runs.page(connection, TENANT, schedule.id, before=datetime(2100, 1, 1, tzinfo=UTC), limit=1000)[::-1]


def states(database: Database, name: str = "nightly") -> list[str]:
    return [run.state for run in found(database, name)]


def events(database: Database, kind: str) -> list[dict[str, Any]]:
    with database.begin_system() as connection:
        rows = connection.execute(
            text("SELECT actor, subject, data FROM events WHERE kind = :k ORDER BY id"), {"k": kind}
        )
        return [dict(row._mapping) for row in rows]


def jobs(database: Database) -> list[Any]:
    with database.begin_system() as connection:
        return list(connection.execute(text("SELECT id, state, priority, labels, total FROM jobs ORDER BY id")))


class Fleet:
    """Three schedulers on a virtual clock. The one that leads is paused every so often, until after its lease is over
    and another one leads; then it goes on with what it was about to do, at the time that it had seen."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._now: dict[str, datetime] = {}
        self._schedulers = [self._scheduler(f"scheduler-{number}", database) for number in range(3)]
        self._submit = submitter(database, settings)
        self._pool = ThreadPoolExecutor(3)
        self._steps = 0
        self._paused: Scheduler | None = None
        self.fenced = 0

    def go(self, begin: datetime, end: datetime, step: timedelta) -> None:
        now = begin
        while now <= end:
            self._steps += 1
            if self._steps % 5 == 0:
                self._pause()
            for one in self._schedulers:
                self._now[one.holder] = self._now[one.holder] if one is self._paused else now
            list(self._pool.map(Scheduler.run_once, [one for one in self._schedulers if one is not self._paused]))
            if self._steps % 5 == 3 and self._paused is not None:
                self.fenced += not self._paused.run_once()
                self._paused = None
            self._submit()
            now += step

    def close(self) -> None:
        self._pool.shutdown()

    def _pause(self) -> None:
        self._paused = next((one for one in self._schedulers if one.epoch is not None), None)
        with self._database.begin_system() as connection:
            connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 second' WHERE name = 'leader'"))

    def _scheduler(self, name: str, database: Database) -> Scheduler:
        self._now[name] = datetime.min.replace(tzinfo=UTC)
        tasks = [
            PeriodicTask("schedules", 0.0, lambda connection: firing.fire(connection, self._now[name])),
            PeriodicTask("schedule-runs", 0.0, runs.settle),
        ]
        return Scheduler(database, tasks, Connectivity(), name)


def cross(database: Database, settings: Settings, crossings: list[tuple[str, datetime]]) -> int:
    """Lets two schedules of a zone fire while its clocks are set, as three schedulers see it: at fixed times, and with
    the clock. Returns how many times they fired; none was missed, and none fired or was submitted twice."""
    expressions = {"fixed": "0,30 0-4 * * *", "running": "*/30 * * * *"}
    expected: dict[str, list[datetime]] = {}
    fleet = Fleet(database, settings)
    try:
        for zone, change in crossings:
            for kind, expression in expressions.items():
                name = f"{zone.replace('/', '.')}.{kind}"
                if name not in expected:
                    put(database, settings, name, cron=expression, timezone=zone, overlap="cancel")
                begin, end = change - timedelta(minutes=75), change + timedelta(minutes=75)
                wanted = fires(expression, zone, begin, end)
                if wanted:
                    first_at(database, wanted[0], name)
                expected[name] = [*expected.get(name, []), *wanted]
            fleet.go(begin, end, timedelta(minutes=15))
            with database.begin_system() as connection:  # until the next time that these clocks are set
                connection.execute(text("UPDATE schedules SET next_at = NULL"))
    finally:
        fleet.close()
    assert fleet.fenced >= len(crossings) // 2
    submitted = Counter((job.labels["schedule"], job.labels["scheduled_for"]) for job in jobs(database))
    for name, wanted in expected.items():
        assert [run.instant for run in found(database, name)] == wanted, name
        assert set(states(database, name)) <= {"running", "cancelled"}
    assert submitted == Counter(
        (name, f"{instant:%Y-%m-%dT%H:%M:%SZ}") for name, wanted in expected.items() for instant in wanted
    )
    return submitted.total()


def waits_for(database: Database, holder: int) -> int | None:
    """The process of Postgres that waits for what that one holds."""
    waiting = text("SELECT pid FROM pg_stat_activity WHERE :holder = ANY(pg_blocking_pids(pid))")
    with database.begin_system() as connection:  # a transaction sees the same activity all the time
        found: int | None = connection.execute(waiting, {"holder": holder}).scalar()
        return found
