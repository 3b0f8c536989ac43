"""The body that asks for an act on every job that matches a filter."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field

from services.core.model import job_words
from services.core.model.body import Body
from services.core.model.requests import PRIORITIES
from services.core.model.states import JobState

Verb = Literal["cancel", "pause", "resume", "retry", "prioritize", "delete"]
VERBS: tuple[Verb, ...] = get_args(Verb)
Priority = Literal["high", "normal", "low"]
Status = Literal[
    "draft", "validating", "queued", "in_progress", "finalizing", "cancelling", "completed", "failed", "cancelled",
    "expired",
]  # fmt: skip


def _when(value: str) -> str:
    job_words.moment(value, is_end=True)
    return value


Name = Annotated[str, Field(min_length=1, max_length=600, pattern=r"^[^\u0000]*$")]
When = Annotated[str, Field(max_length=40, pattern=job_words.WHEN_PATTERN), AfterValidator(_when)]


class BulkRequest(Body):
    """What is done, to which jobs: those that match all that is given."""

    ALLOWED: ClassVar = {
        "action": f"one of {', '.join(VERBS)}",
        "status": f"a list of one or more of {', '.join(state.value for state in JobState)}; left out, any",
        "label": "a label's name, a colon and its value, such as run:nightly",
        "text": "1 to 600 characters that stand in a label",
        "of_priority": f"the priority that they have: one of {', '.join(PRIORITIES)}",
        "model": "the name of a model that renders them",
        "submitted_by": "the name or the id of the key that submitted them",
        "since": f"since when they were submitted: {job_words.WHEN}",
        "until": "until when, the same; a day is included",
        "except_running": "true: jobs in progress are not cancelled; else false",
        "include_cancelled": "true: cancelled images are tried again too; else false",
        "priority": f"one of {', '.join(PRIORITIES)}, with the action prioritize",
    }
    action: Verb
    status: Annotated[list[Status], Field(min_length=1, max_length=10)] = None  # type: ignore[assignment]
    label: Annotated[str, Field(max_length=600, pattern=r"^[^:\u0000]{1,64}:[^\u0000]*$")] = None  # type: ignore[assignment]
    text: Annotated[str, Field(min_length=1, max_length=600, pattern=r"^[^\u0000]*$")] = None  # type: ignore[assignment]
    of_priority: Priority = None  # type: ignore[assignment]
    model: Name = None  # type: ignore[assignment]
    submitted_by: Name = None  # type: ignore[assignment]
    since: When = None  # type: ignore[assignment]
    until: When = None  # type: ignore[assignment]
    except_running: bool = False
    include_cancelled: bool = False
    priority: Priority = None  # type: ignore[assignment]
