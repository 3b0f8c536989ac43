"""How values are written for people: numbers, spans of time, moments."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from services.core.events.queries import Event
from services.core.fleet import workers
from services.core.fleet.workers import Worker
from services.core.model import metadata_types, scores

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def number(value: int) -> str:
    """12,345."""
    return f"{value:,}"


def rate(value: float) -> str:
    """Images per second with as many digits as say something."""
    if value < 0.01:
        return "0" if value <= 0 else "<0.01"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def span(seconds: float | None) -> str:
    """A time to wait, in its two largest units: 3 h 20 min. The script does the same (words.js)."""
    if seconds is None:
        return ""
    left = max(0, round(seconds))
    for place, (size, unit) in enumerate(_UNITS):
        if left >= size:
            smaller = _UNITS[place + 1] if place + 1 < len(_UNITS) else None
            rest = left % size // smaller[0] if smaller else 0
            return f"{left // size} {unit}" + (f" {rest} {smaller[1]}" if smaller and rest else "")
    return "0 s"


def took(seconds: float) -> str:
    """How long a picture took: 0.12 s, 3.4 s, 2 min 5 s."""
    return span(seconds) if seconds >= 60 else f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def between(low: float | None, high: float | None) -> str:
    """The bounds of a time to wait: 2 min to 4 min; nothing if they are the same in words."""
    begin, end = span(low), span(high)
    return "" if begin == end else f"{begin} to {end}"


def moment(value: datetime) -> str:
    """To the minute, in UTC; the script writes it in the browser's time."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def score(value: float | None) -> str:
    """A score with as many digits as say something."""
    return "failed" if value is None else f"{value:.4g}"


def size(value: int) -> str:
    """Bytes, as 1.2 MB."""
    left = float(value)
    for unit in ("bytes", "kB", "MB", "GB"):
        if left < 1000:
            return f"{left:.0f} {unit}" if unit == "bytes" or left >= 100 else f"{left:.1f} {unit}"
        left /= 1000
    return f"{left:.1f} TB"


def plural(count: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


_NOT_TOLD = (("state", "queued"), ("reused", 0), ("cancelled", 0), ("failed", 0))  # other words say it, or nothing does


def happening(event: Event) -> str:
    """What an event says, in words: job.priority_changed with its data."""
    words = event.kind.partition(".")[2].replace("_", " ")
    noun = event.kind.partition(".")[0]
    told = {name: value for name, value in event.data.items() if (name, value) not in _NOT_TOLD}
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
    return f"{words if noun == 'job' else f'{noun} {words}'}{f' ({said})' if said else ''}".capitalize()


def who(actor: str | None, name: str | None = None) -> str:
    """An actor in words: a key by its name, whoever used the command by theirs, a program by what it is."""
    kind, _, of = (actor or "").partition("/")
    match kind:
        case "":
            return "not known"
        case "key":
            return name or f"key {of}"
        case "user":
            return of
        case "cli":
            return f"{of}, by the command"
        case "scheduler":
            return "the scheduler"
    return actor or ""


def doing(worker: Worker) -> str:
    """What a worker does, as far as it is known."""
    if worker.doing:
        return worker.doing
    if worker.rendering and worker.is_live:
        return f"holds {plural(worker.rendering, 'image')}"
    if worker.drained and worker.is_live:
        return "takes nothing new"
    return "waits for work" if worker.state == "ready" else ""


def pair(value: str) -> tuple[str, str]:
    """The choice of a list whose value is its word."""
    return value, value


def whose(event: Event, visitor: Any) -> str:
    """Who did it. The name of a worker, which has its host's, is for those who may operate."""
    if event.actor.startswith("worker ") and not visitor.principal.sees_hosts:
        return "a worker"
    return who(event.actor, event.actor_name)


def place(device: str, visitor: Any) -> str:
    """Where something was rendered, with its host for those who may operate."""
    return device if visitor.principal.sees_hosts else workers.without_host(device)


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "rate": rate,
    "span": span,
    "took": took,
    "between": between,
    "moment": moment,
    "iso": iso,
    "size": size,
    "score": score,
    "metadata": metadata_types.text_of,
    "phash": scores.hex_of,
    "plural": plural,
    "happening": happening,
    "doing": doing,
    "pair": pair,
    "place": place,
    "who": who,
    "whose": whose,
}
