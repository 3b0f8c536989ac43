"""What may be asked of schedules: the fields, their limits and the checks. Each refusal is one sentence."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import Field

from services.core.model import strict_json
from services.core.model.body import Body
from services.core.model.errors import InvalidSubmission, Problem
from services.core.schedules import times, zones
from services.core.schedules.times import Cron

Misfire = Literal["latest", "all", "none"]
Overlap = Literal["skip", "queue", "cancel"]
NAME = r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?"
MOST_MISFIRED = 100
MOST_HOURS = 720  # of a deadline
LAST_YEAR = 2100
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_SPAN = re.compile(r"([1-9][0-9]{0,4})([mh])", re.ASCII)
_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII)
_DEADLINE = f'a time on the clock such as "06:00", or a span such as "5h" or "90m", up to {MOST_HOURS}h'

ALLOWED = {
    "name": "1 to 64 of A-Z a-z 0-9 . _ -, with no dot at either end",
    "cron": 'five fields (minute, hour, day of month, month, day of week), such as "0 1 * * *"; either this or at',
    "at": 'one moment with its offset, such as "2027-01-01T06:00:00+01:00"; either this or cron',
    "timezone": 'a name of the IANA such as "Europe/Berlin", whose clocks cron and deadline mean; "UTC" if left out',
    "target": "an object with one field that says what is submitted: job (a body as POST /v1/jobs takes it), batch "
    "(input_file_id and options) or catalogue (its name)",
    "misfire": '"latest", "all" or "none": which of the runs that were missed are made up for',
    "misfire_limit": f"a whole number from 1 to {MOST_MISFIRED}: how many with misfire all, the latest ones",
    "overlap": '"skip", "queue" or "cancel" (the run before), for a run that is due before the one before has ended',
    "deadline": _DEADLINE,
    "paused": "true or false",
}  # fmt: skip


class ScheduleRequest(Body):
    """A schedule: what is submitted, and when."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")] = None  # type: ignore[assignment]
    cron: Annotated[str, Field(max_length=10_000)] = None  # type: ignore[assignment]
    at: Annotated[str, Field(max_length=40)] = None  # type: ignore[assignment]
    timezone: Annotated[str, Field(max_length=100)] = "UTC"
    target: dict[str, Any]
    misfire: Misfire = "latest"
    misfire_limit: Annotated[int, Field(ge=1, le=MOST_MISFIRED)] = 10
    overlap: Overlap = "skip"
    deadline: Annotated[str, Field(max_length=10)] = None  # type: ignore[assignment]
    paused: bool = False


class ScheduleChanges(Body):
    """Pauses a schedule, or resumes it."""

    ALLOWED: ClassVar = {"paused": ALLOWED["paused"]}
    paused: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """When a schedule fires, and until when its runs are to be done. Either `cron` or `at` is set."""

    zone: ZoneInfo
    cron: Cron | None
    at: datetime | None
    deadline: str | None

    @classmethod
    def stored(cls, row: Any) -> "Rule":
        """That of a row of the table, which was checked when it was written."""
        zone = zones.zone(row.timezone)
        return cls(zone, Cron(row.cron, zone) if row.cron is not None else None, row.at, row.deadline)

    def next(self, now: datetime) -> datetime | None:
        """The first instant after `now`. None: it fires no more."""
        if self.cron is not None:
            return self.cron.next(now)
        return self.at if self.at is not None and self.at > now else None

    def due(self, first: datetime, now: datetime, most: int) -> list[datetime]:
        """The latest instants from `first` to `now`, at most so many."""
        if self.cron is not None:
            return self.cron.between(first, now, most)
        return [self.at] if self.at is not None and first <= self.at <= now else []

    def until(self, instant: datetime) -> datetime | None:
        """The deadline of the run of that instant."""
        if self.deadline is None:
            return None
        if span := _span(self.deadline):
            return instant + span
        hour, minute = map(int, self.deadline.split(":"))
        wall = zones.wall(self.zone, instant).replace(hour=hour, minute=minute, second=0, microsecond=0)
        found = zones.moment(self.zone, wall)
        return found if found > instant else zones.moment(self.zone, wall + timedelta(days=1))


def is_name(text: str) -> bool:
    return re.fullmatch(NAME, text, re.ASCII) is not None


def rule(asked: ScheduleRequest, now: datetime, least: float, known_at: datetime | None = None) -> Rule:
    """Checks when it fires. `known_at`: what `at` has been so far, which may be past by now.

    Raises:
        InvalidSubmission: one sentence that says what is wrong.
    """
    if (asked.cron is None) == (asked.at is None):
        raise refused("invalid_value", "Give either cron, for a schedule that recurs, or at, for one run.", "cron")
    if asked.misfire == "all" and asked.overlap == "cancel":
        message = "misfire all and overlap cancel exclude each other: each run would cancel the one made up for before."
        raise refused("invalid_value", message, "misfire")
    zone = zones.zone(asked.timezone)
    if asked.deadline is not None and not (_CLOCK.fullmatch(asked.deadline) or _span(asked.deadline)):
        found = strict_json.describe(asked.deadline)
        raise refused("invalid_value", f"deadline is {found}; it must be {_DEADLINE}.", "deadline")
    if asked.cron is not None:
        return Rule(zone, times.read(asked.cron, zone, now, least), None, asked.deadline)
    return Rule(zone, None, _at(asked.at, now, known_at), asked.deadline)


def refused(code: str, message: str, param: str) -> InvalidSubmission:
    return InvalidSubmission([Problem(code, message, param)])


def _at(text: str, now: datetime, known: datetime | None) -> datetime:
    shown = strict_json.describe(text)
    try:
        found = datetime.fromisoformat(text) if _AT.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None:
        hint = "with its offset from UTC, such as 2027-01-01T06:00:00+01:00"
        raise refused("invalid_value", f"at is {shown}; it must be a date and a time that exist, {hint}.", "at")
    if found.year > LAST_YEAR or found.year < 2:
        raise refused("invalid_value", f"at is {shown}; it must be a moment before the year {LAST_YEAR + 1}.", "at")
    moment = found.astimezone(UTC)
    if moment <= now and moment != known:
        clock = f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        message = f"at is {shown}, which is past (it is {clock}); give a moment to come, or submit a job."
        raise refused("at_is_past", message, "at")
    return moment


def _span(text: str) -> timedelta | None:
    found = _SPAN.fullmatch(text)
    minutes = int(found[1]) * (60 if found[2] == "h" else 1) if found else 0
    return timedelta(minutes=minutes) if 0 < minutes <= MOST_HOURS * 60 else None
