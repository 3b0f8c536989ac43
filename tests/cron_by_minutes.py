"""What schedules must do, said in another way: a clock that is looked at every minute. Slow, and easily seen to be
right."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache

from services.core.schedules import zones

MINUTE = timedelta(minutes=1)
FIRST, LAST = datetime(2024, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
ZONES = (
    "Europe/Berlin", "Europe/London", "Europe/Dublin", "America/New_York", "America/Sao_Paulo", "America/St_Johns",
    "Australia/Lord_Howe", "Pacific/Chatham", "Africa/Casablanca", "Asia/Kathmandu", "America/Santiago", "Asia/Beirut",
)  # fmt: skip


@cache
def changes(name: str) -> list[tuple[datetime, timedelta]]:
    """When the zone's clocks are set, and by how much, from 2024 to 2035."""
    zone, found = zones.zone(name), []
    moment, step = FIRST, timedelta(hours=12)
    while moment < LAST:
        before, after = moment.astimezone(zone).utcoffset(), (moment + step).astimezone(zone).utcoffset()
        if before != after:
            minutes = (moment + minute * MINUTE for minute in range(1, 721))
            found.append((next(one for one in minutes if one.astimezone(zone).utcoffset() != before), after - before))
        moment += step
    return found


def fires(expression: str, name: str, begin: datetime, end: datetime) -> list[datetime]:
    """When it fires after `begin`, up to `end`. Knows minutes and hours only, as *, lists, ranges and steps."""
    minute, hour = expression.split()[:2]
    wanted = {(h, m) for h in _values(hour, 24) for m in _values(minute, 60)}
    walk = _with_the_clock if "*" in (minute[0], hour[0]) else _at_fixed_times
    found = walk(wanted, name, begin.replace(second=0, microsecond=0), end)
    return sorted(moment for moment in found if moment > begin)


def _with_the_clock(wanted: set[tuple[int, int]], name: str, begin: datetime, end: datetime) -> Iterator[datetime]:
    zone, moment = zones.zone(name), begin
    while moment <= end:
        clock = moment.astimezone(zone)
        if (clock.hour, clock.minute) in wanted:
            yield moment
        moment += MINUTE


def _at_fixed_times(wanted: set[tuple[int, int]], name: str, begin: datetime, end: datetime) -> set[datetime]:
    """Each minute on the clock, also those that it skips, fires at the first instant at which the clock shows that
    minute or, having skipped it, a later one."""
    zone, shown, found = zones.zone(name), None, set()
    moment = begin - timedelta(hours=2)  # longer than any clock is set back
    while moment <= end:
        clock = moment.astimezone(zone).replace(tzinfo=None)
        minute = clock if shown is None else shown + MINUTE
        while minute <= clock:  # nothing, while the clock shows again what it has shown
            if (minute.hour, minute.minute) in wanted and moment >= begin:
                found.add(moment)
            shown = minute
            minute += MINUTE
        moment += MINUTE
    return found


def _values(text: str, limit: int) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        first, last = (0, limit - 1) if low == "*" else (int(low), int(high or low))
        found |= set(range(first, last + 1, int(step or 1)))
    return found
