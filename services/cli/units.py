"""Formats numbers, durations and times for people."""

from collections.abc import Mapping
from datetime import UTC, datetime


def share(part: int, total: int) -> str:
    """Percent, rounded down: 100 % means all."""
    return f"{part * 100 // total} %" if total else "-"


def speed(rate: float) -> str:
    return f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"


def duration(seconds: float) -> str:
    """Rounded to the two largest units."""
    if 0 < seconds < 1:
        return "<1 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    for large, small, words in ((days, hours, "d h"), (hours, minutes, "h min"), (minutes, 0, "min s")):
        if large:
            first, second = words.split()
            return f"{large} {first} {small} {second}" if small else f"{large} {first}"
    return f"{rest} s"


def age(since: str, until: str | None = None) -> str:
    end = moment(until) if until else datetime.now(UTC)
    return duration(max(0.0, (end - moment(since)).total_seconds()))


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def local(text: str) -> str:
    """A UTC time in this machine's time zone."""
    return moment(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def day(at: datetime) -> str:
    """The day of a moment, in local time."""
    return f"{at.astimezone():%Y-%m-%d}"


def size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def count(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def kept(days: Mapping[str, int | None]) -> str:
    """`payloads 30 days, records for ever`."""
    return ", ".join(f"{kind} {'for ever' if given is None else count(given, 'day')}" for kind, given in days.items())


def shortened(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
