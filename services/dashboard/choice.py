"""Which images of a job a page is about, as its address says it: a state, a cause, a mark, a text to search for, or
scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends

from services.api.errors import ApiError
from services.core.jobs import image_pages
from services.core.jobs.image_pages import UNMARKED, WHICH
from services.core.marks.asked import Mark
from services.core.model import scores
from services.core.model.states import ImageState

STATES = {state.word: state for state in ImageState}
_MOST_TEXT = 200


@dataclass(frozen=True, slots=True)
class Choice:
    """At most one of them is set, score and sort counting as one; what is not is empty."""

    state: str = ""
    cause: str = ""
    mark: str = ""
    q: str = ""
    score: str = ""
    sort: str = ""

    @property
    def query(self) -> str:
        """The part of an address behind the path, with its question mark; empty: all images."""
        given = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name)}
        return f"?{urlencode(given)}" if given else ""

    @property
    def wanted(self) -> image_pages.Filter:
        return image_pages.Filter(STATES.get(self.state), self.cause or None, self.mark or None)

    @property
    def scores(self) -> scores.Wanted | None:
        """What is asked of scores; None: nothing. Raises NotUnderstood."""
        return scores.wanted(self.score.split(",") if self.score else [], self.sort)

    @property
    def words(self) -> str:
        """Which images these are, as in `4 done images`."""
        return (
            "scored"
            if self.score or self.sort
            else self.state or self.mark.replace(UNMARKED, "unmarked") or ("failed" if self.cause else "")
        )

    @property
    def is_of_done(self) -> bool:
        """Whether all that match can be marked: done images, chosen by state or mark."""
        return not (self.cause or self.q or self.score or self.sort) and self.state in ("", "done")

    def marked(self, counts: Mapping[str, int], marks: Mapping[Mark, int]) -> int | None:
        """How many done images match, which are those that get a mark; None: it is about others, or not known."""
        if not self.is_of_done:
            return None
        if self.mark == UNMARKED:
            return max(0, counts["done"] - sum(marks.values()))
        return marks[self.mark] if self.mark else counts["done"]  # type: ignore[index]  # one of MARKS


def _choice(state: str = "", cause: str = "", mark: str = "", q: str = "", score: str = "", sort: str = "") -> Choice:
    text = q.strip()[:_MOST_TEXT].replace("\0", "")
    for given, known, noun in ((state, tuple(STATES), "state"), (mark, WHICH, "mark")):
        if given and given not in known:
            raise ApiError(400, "invalid_parameter", f"There is no such {noun}; there are {', '.join(known)}.")
    if len(cause) > 64 or "\0" in cause:
        raise ApiError(400, "invalid_parameter", "cause must be the code of a cause, as the job's page lists them.")
    if cause and state == "failed":
        state = ""
    if mark and state == "done":
        state = ""
    score, sort = score.strip(), sort.strip()
    if sum(map(bool, (state, cause, mark, text, score or sort))) > 1:
        raise ApiError(
            400, "invalid_parameter", "Give one of state, cause, mark, q and score: the others leave it out."
        )
    chosen = Choice(state, cause, mark, text, score, sort)
    try:
        chosen.scores  # noqa: B018  is it understood?
    except scores.NotUnderstood as error:
        raise ApiError(400, "invalid_parameter", str(error)) from None
    return chosen


Chosen = Annotated[Choice, Depends(_choice)]
