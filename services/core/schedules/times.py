"""When a cron expression fires: five fields, read on the clocks of a time zone.

Cronsim reads the fields, and says which times match on a clock that is never set. What happens where clocks are set
stands here, and is what Debian's cron does: a fixed time that is skipped fires as soon as clocks are set forward, and
one that comes twice fires the first time. If the minute or the hour is a wildcard, it goes on with the clock: whatever
the clock skips does not fire, and what it shows twice fires twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from services.core.model import strict_json
from services.core.model.errors import InvalidSubmission, Problem
from services.core.schedules import zones

LONGEST = 200  # characters
YEARS = 5  # it must fire within them
_FIELDS = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day of month": "1 to 31, L (the last) or LW (the last one from Monday to Friday)",
    "month": "1 to 12 or JAN to DEC",
    "day of week": "0 to 7 or SUN to SAT, also as 1#2 (the second Monday) or 1L (the last)",
}
_FORM = f'five fields ({", ".join(_FIELDS)}), such as "0 1 * * *"'
_SECOND = timedelta(seconds=1)
_DAY = 24 * 60
_MANY = 1_000


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked expression and its zone."""

    expression: str
    zone: ZoneInfo

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The instants, in UTC, at which it fires after `moment`, in order. They end if it never fires again."""
        moment = moment.astimezone(UTC)
        minute, hour = self.expression.split()[:2]
        return self._running(moment) if minute[0] == "*" or hour[0] == "*" else self._fixed(moment)

    def next(self, moment: datetime) -> datetime | None:
        return next(self.after(moment), None)

    def between(self, first: datetime, last: datetime, most: int) -> list[datetime]:
        """The latest instants from `first` to `last`, both included: `most` of them at most."""
        span = timedelta(hours=1)
        while True:
            begin = max(first, last - span)
            found: list[datetime] = []
            for moment in self.after(begin - _SECOND):
                if moment > last:
                    break
                found.append(moment)
            if len(found) >= most or begin == first:
                return found[-most:]
            span *= 8

    def _fixed(self, after: datetime) -> Iterator[datetime]:
        for wall in CronSim(self.expression, zones.wall(self.zone, after)):
            moment = zones.moment(self.zone, wall)
            if moment > after:  # several skipped times are one instant, and of one that comes twice the first counts
                yield moment
                after = moment

    def _running(self, reached: datetime) -> Iterator[datetime]:
        walls = CronSim(self.expression, zones.wall(self.zone, reached))
        offset = reached.astimezone(self.zone).utcoffset() or timedelta()
        while (wall := next(walls, None)) is not None:
            moment = wall.replace(tzinfo=UTC) - offset
            change = zones.change(self.zone, reached, moment)
            if change is None:
                yield moment
                reached = moment
            else:  # the time that the clock shows from now on may be one of them
                reached, offset = change, change.astimezone(self.zone).utcoffset() or timedelta()
                walls = CronSim(self.expression, zones.wall(self.zone, change) - _SECOND)


def read(expression: str, zone: ZoneInfo, now: datetime, least: float) -> Cron:
    """Checks an expression. It must fire within five years, and never more often than every `least` seconds.

    Raises:
        InvalidSubmission: one sentence that says what is wrong, and where.
    """
    shown = strict_json.describe(expression)
    fields = expression.upper().split()
    if len(expression) > LONGEST:
        raise _refused("too_long", f"cron has {len(expression):,} characters; it must have {LONGEST} at most.")
    if expression.startswith("@"):
        raise _refused("invalid_cron", f"cron is {shown}, and names such as this are not known; it must be {_FORM}.")
    if len(fields) != len(_FIELDS):
        raise _refused("invalid_cron", f"cron is {shown}, which has {len(fields)} fields; it must be {_FORM}.")
    _check_fields(fields)
    cron = Cron(" ".join(fields), zone)
    first = _first(cron, now)
    if first is None:
        raise _refused("never_fires", f"cron {shown} never fires within {YEARS} years: no date matches its fields.")
    shortest = _shortest(cron, now)
    if shortest < least:
        raise _refused(
            "too_often",
            f"cron {shown} fires {shortest:,.0f} seconds apart, more often than the least interval of {least:,.0f} "
            "seconds that this server allows.",
        )
    return cron


def _check_fields(fields: list[str]) -> None:
    for number, ((name, allowed), text) in enumerate(zip(_FIELDS.items(), fields, strict=True)):
        alone = ["*"] * len(fields)
        alone[number] = text
        try:
            CronSim(" ".join(alone), datetime(2024, 1, 1))  # noqa: DTZ001  a year whose February has 29 days
        except (CronSimError, ValueError, AssertionError):
            steps = ", with lists (1,2), ranges (1-5) and steps (*/2)"
            message = f"The {name} of cron is {strict_json.describe(text)}; it must be * or {allowed}{steps}."
            raise _refused("invalid_cron", message) from None


def _first(cron: Cron, now: datetime) -> datetime | None:
    try:
        found = cron.next(now)
    except CronSimError:  # cronsim itself sees that no month has such a day
        return None
    return found if found is not None and found <= now + timedelta(days=YEARS * 366) else None


def _shortest(cron: Cron, now: datetime) -> float:
    """The shortest time between two runs, in seconds, on a clock that is never set."""
    read = CronSim(cron.expression, now.replace(tzinfo=None))
    minutes = sorted(60 * hour + minute for hour in read.hours for minute in read.minutes)  # of a day
    within = min((later - earlier for earlier, later in pairwise(minutes)), default=10 * _DAY) * 60.0
    over_midnight = (minutes[0] + _DAY - minutes[-1]) * 60.0
    if over_midnight >= within:
        return within
    days = (later - earlier for earlier, later in pairwise(islice(read, _MANY)))
    return min(within, min(days, default=timedelta(days=10)).total_seconds())


def _refused(code: str, message: str) -> InvalidSubmission:
    return InvalidSubmission([Problem(code, message, "cron")])
