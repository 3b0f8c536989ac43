"""The words in which lists of jobs are asked for, everywhere: in the dashboard's addresses, `GET /v1/jobs` and
`presswork ls`; and what those for a time mean."""

import re
from datetime import UTC, datetime, timedelta

from services.core.model.states import FINAL_JOB_STATES, JobState

WORDS = ("q", "status", "label", "model", "priority", "who", "since", "until")  # besides `sort`
STATES: dict[str, tuple[str, ...]] = {
    "": (),
    "unfinished": tuple(sorted(set(JobState) - FINAL_JOB_STATES - {JobState.DRAFT})),
    **{state.value: (state.value,) for state in JobState},
}
MOST_TEXT = 600
WHEN = "a day in UTC such as 2026-11-26, a moment with its offset from UTC, or how long ago: 30m, 2h, 7d, 4w"
WHEN_PATTERN = (
    r"^(?:[0-9]{1,6}[mhdw]|[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2}))?)$"
)
_WHEN, _AGO = re.compile(WHEN_PATTERN, re.ASCII), re.compile(r"([0-9]+)([mhdw])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_FIRST, _LAST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


def moment(given: str, *, is_end: bool) -> datetime:
    """What a WHEN means: a day begins, or ends with `is_end`. Raises ValueError."""
    if not _WHEN.fullmatch(given):
        raise ValueError(given)
    if ago := _AGO.fullmatch(given):
        span = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        now = datetime.now(UTC)
        return now - span if span < now - _FIRST else _FIRST
    found = datetime.fromisoformat(given)
    if len(given) > len("2026-11-26"):
        return min(max(found, _FIRST), _LAST).astimezone(UTC)
    return min(found.replace(tzinfo=UTC), _LAST) + timedelta(days=is_end)
