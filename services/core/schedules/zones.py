"""IANA time zones, from the package `tzdata` alone: every host has the same rules, also one that has none itself."""

from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from services.core.model import strict_json
from services.core.model.errors import InvalidSubmission, Problem

_STEP = timedelta(hours=6)  # no zone changes its offset twice within it


@cache
def names() -> frozenset[str]:
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="ascii").split())


def zone(name: str) -> ZoneInfo:
    """The zone of that name. Raises InvalidSubmission, with the name that was probably meant."""
    if name not in names():
        raise InvalidSubmission([Problem("unknown_timezone", _unknown(name), "timezone")])
    return _zone(name)


@cache
def _zone(name: str) -> ZoneInfo:
    place = files("tzdata").joinpath("zoneinfo")
    for part in name.split("/"):  # one of `names`, so no path of a client's
        place = place.joinpath(part)
    with place.open("rb") as file:
        return ZoneInfo.from_file(file, name)


def moment(zone: ZoneInfo, wall: datetime) -> datetime:
    """The instant in UTC at which clocks of the zone show `wall`: the first one, if they show it twice. A time that
    they skip is the instant at which they do so."""
    found = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None) == wall:
        return found
    begin = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)  # by the later offset: before the clocks are set forward
    return change(zone, begin, found) or found


def wall(zone: ZoneInfo, moment: datetime) -> datetime:
    """What clocks of the zone show at that instant."""
    return moment.astimezone(zone).replace(tzinfo=None)


def change(zone: ZoneInfo, begin: datetime, end: datetime) -> datetime | None:
    """The first instant after `begin`, and not after `end`, with another offset from UTC than `begin` has."""
    offset = begin.astimezone(zone).utcoffset()
    low = begin
    while low < end:
        high = min(low + _STEP, end)
        if high.astimezone(zone).utcoffset() != offset:
            return _between(zone, low, high)
        low = high
    return None


def _between(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """Where the offset changes between two instants, of which the second has another one. To the second."""
    offset = low.astimezone(zone).utcoffset()
    low, high = low.replace(microsecond=0), high.replace(microsecond=0) + timedelta(seconds=bool(high.microsecond))
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        low, high = (middle, high) if middle.astimezone(zone).utcoffset() == offset else (low, middle)
    return high


def _unknown(name: str) -> str:
    by_city = {one.rpartition("/")[2].lower(): one for one in sorted(names(), reverse=True)}
    plain = name.strip().lower().replace(" ", "_")
    spelled = {one.lower(): one for one in names()}
    known = [plain] if plain in spelled else get_close_matches(plain, spelled, 1, 0.8)
    found = spelled[known[0]] if known else by_city.get(plain.rpartition("/")[2], "")
    hint = f"did you mean {found}?" if found else 'it must be a name such as "Europe/Berlin" or "UTC".'
    return f"There is no time zone {strict_json.describe(name)}; {hint}"
