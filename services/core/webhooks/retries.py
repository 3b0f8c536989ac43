"""When a delivery that failed is tried again: after pauses that grow over days, each a little longer by chance."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MINUTE, _HOUR = 60, 3600
PAUSES = (5, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR)
_JITTER = 0.2
LONGEST = 24 * _HOUR  # that an answer may ask for
DISABLED_AFTER_DAYS = 5  # of failing without a success
_LONGEST_REST = 5 * _MINUTE


def pause(tries: int) -> float | None:
    """How many seconds after so many tries the next one comes, at least. None: there is none."""
    if tries > len(PAUSES):
        return None
    return PAUSES[tries - 1] * random.uniform(1, 1 + _JITTER)


def rest(failures: int) -> float:
    """How many seconds an endpoint that failed so often in a row gets nothing: one that is dead costs little."""
    return min(2.0 ** min(failures, 20), _LONGEST_REST) * random.uniform(1, 1 + _JITTER)


def asked_for(header: str, now: datetime) -> float:
    """The seconds that Retry-After asks for, as a number or a date, up to a day. 0: none."""
    if header.isascii() and header.isdigit():
        return float(min(int(header[:10]), LONGEST))
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):  # numbers that no date has
        return 0.0
    found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
    return min(max(found.total_seconds(), 0.0), LONGEST)
