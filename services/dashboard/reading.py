"""Jobs as the pages show them."""

from collections.abc import Sequence
from datetime import datetime

from services.api.dependencies import Context
from services.core.jobs import queries, remaining
from services.core.jobs.queries import JobView
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.model.states import FINAL_JOB_STATES
from services.dashboard import words

STATE_WORDS = {"in_progress": "in progress"}
PRIORITIES = ("high", "normal", "low")


class Shown:
    """A job for a template: the view, and what follows from it."""

    def __init__(self, view: JobView) -> None:
        self.view = view
        self.id = ids.public_job(view.id)
        self.counts = view.counts
        self.total = view.total
        self.finished = sum(view.counts[name] for name in ("done", "failed", "cancelled"))
        self.percent = f"{100 * self.finished // max(1, view.total)} %"
        self.is_final = view.state in FINAL_JOB_STATES
        self.state = "paused" if view.paused and not self.is_final else view.state
        self.word = STATE_WORDS.get(self.state, self.state)
        self.priority = PRIORITIES[view.priority]
        self.name = view.labels.get("name") or self.id
        self.labels = [label for label in view.labels.items() if label != ("name", self.name)]

    @property
    def parts(self) -> list[tuple[str, str, str]]:
        """The bar: the name of each part, where it begins and how wide it is, of 100."""
        begin, found = 0.0, []
        for name in ("done", "failed", "cancelled", "rendering"):
            width = 100 * self.counts[name] / max(1, self.total)
            found.append((name, f"{begin:.3f}", f"{width:.3f}"))
            begin += width
        return found

    @property
    def times(self) -> str:
        """How long it waited and ran."""
        waited = words.span(self.seconds(self.view.created_at, self.view.started_at or self.view.finished_at))
        ran = words.span(self.seconds(self.view.started_at, self.view.finished_at))
        if not ran:
            return f"waited {waited}" if self.is_final else f"waiting for {waited}"
        return f"waited {waited}, {'ran' if self.is_final else 'running for'} {ran}"

    def seconds(self, begin: datetime | None, end: datetime | None) -> float | None:
        """The time between two moments of the job; what has not ended lasts until now."""
        return None if begin is None else ((end or self.view.as_of) - begin).total_seconds()


def shown(context: Context, views: Sequence[JobView]) -> list[Shown]:
    """The jobs, each with the time that is left, if it is known."""
    if any(remaining.lacking(view) for view in views):
        with context.database.read_system() as connection:  # every tenant's queued images are ahead
            views = remaining.estimated(connection, views)
    return [Shown(view) for view in views]


def job(context: Context, tenant: int, number: int, *, with_time_left: bool = True) -> Shown:
    """Raises NotFound."""
    with context.database.read(tenant) as connection:
        view = queries.job(connection, tenant, number)
    if view is None:
        raise NotFound(f"There is no job {ids.public_job(number)}.")
    return shown(context, [view])[0] if with_time_left else Shown(view)
