"""The marks that there are, and the body that sets them: of some images, or of all that match."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from services.core.model.body import Body

Mark = Literal["accepted", "rejected", "starred"]
MARKS: tuple[Mark, ...] = get_args(Mark)
MarkOrNone = Literal["accepted", "rejected", "starred", "none"]
AT_ONCE = 5_000  # images whose marks one call sets
_MARKS = ", ".join(get_args(MarkOrNone))

MATCHING = {"mark": f"the mark that they have now: one of {_MARKS}", "flagged": "true or false"}


class Matching(Body):
    """Which done images are meant: those that have this mark now, and of which the model's checker said this."""

    mark: MarkOrNone = None  # type: ignore[assignment]
    flagged: bool = None  # type: ignore[assignment]


class MarksRequest(Body):
    """The mark that images get, and which images: their indexes, or what they match."""

    ALLOWED: ClassVar = {
        "mark": f"one of {_MARKS}; none removes a mark",
        "indexes": f"a list of 1 to {AT_ONCE:,} indexes of done images",
        "matching": f"an object with mark (one of {_MARKS}) or flagged (true or false); {{}} means all done images",
        "cursor": "the next_cursor of the answer before",
    }
    mark: MarkOrNone
    indexes: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=AT_ONCE)] = None  # type: ignore[assignment]
    matching: Matching = None  # type: ignore[assignment]
    cursor: Annotated[str, Field(max_length=200)] = None  # type: ignore[assignment]
