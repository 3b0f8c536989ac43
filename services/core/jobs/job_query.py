"""What a list of jobs is asked for, from its words (`model/job_words.py`) and back."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from services.core.jobs.listing import ORDERS, Filter, Order
from services.core.model.errors import PressworkError
from services.core.model.job_words import MOST_TEXT, STATES, WHEN, WORDS, moment
from services.core.model.requests import PRIORITIES


class NotUnderstood(PressworkError):
    """A word is not what it takes. `field` is its name."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


def understood(given: Mapping[str, str]) -> tuple[Filter, Order]:
    """The filter and the order; a word that is left out or empty says nothing. Raises NotUnderstood."""
    words = {name: given.get(name) or "" for name in (*WORDS, "sort")}
    order = next((order for order in ORDERS if order == (words["sort"] or "newest")), None)
    if order is None:
        raise NotUnderstood("sort", f"There is no such order; there are {', '.join(ORDERS)}.")
    if words["status"] not in STATES:
        raise NotUnderstood("status", f"There is no such status; there are {', '.join(STATES)[2:]}.")
    if words["priority"] and words["priority"] not in PRIORITIES:
        raise NotUnderstood("priority", f"There is no such priority; there are {', '.join(PRIORITIES)}.")
    for name in ("q", "model", "who"):
        if len(words[name]) > MOST_TEXT or "\0" in words[name]:
            raise NotUnderstood(name, f"{name} may have {MOST_TEXT} characters, of those that a label can hold.")
    return Filter(
        STATES[words["status"]],
        _label(words["label"]),
        words["q"],
        PRIORITIES[words["priority"]] if words["priority"] else None,
        words["model"],
        words["who"],
        _moment("since", words["since"], is_end=False),
        _moment("until", words["until"], is_end=True),
    ), order


def said(wanted: Filter) -> dict[str, str]:
    """The filter in these words; what it does not ask for is left out."""
    status = next((name for name, states in STATES.items() if set(states) == set(wanted.states)), "")
    found = {
        "q": wanted.text,
        "status": status,
        "label": ":".join(wanted.label) if wanted.label else "",
        "model": wanted.model,
        "priority": next((word for word, number in PRIORITIES.items() if number == wanted.priority), ""),
        "who": wanted.who,
        "since": _written(wanted.since, is_end=False),
        "until": _written(wanted.until, is_end=True),
    }
    return {name: value for name, value in found.items() if value}


def _moment(name: str, given: str, *, is_end: bool) -> datetime | None:
    try:
        return moment(given, is_end=is_end) if given else None
    except ValueError:
        raise NotUnderstood(name, f"{name} is {WHEN}.") from None


def _written(at: datetime | None, *, is_end: bool) -> str:
    if at is None:
        return ""
    day = at.astimezone(UTC) - timedelta(days=is_end)
    return f"{day:%Y-%m-%d}" if at.time() == datetime.min.time() else f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _label(given: str) -> tuple[str, str] | None:
    name, colon, value = given.partition(":")
    if given and not (0 < len(name) <= 64 and colon and "\0" not in given and len(given) <= MOST_TEXT):
        raise NotUnderstood("label", "A label is a name, a colon and a value, such as run:nightly.")
    return (name, value) if given else None
