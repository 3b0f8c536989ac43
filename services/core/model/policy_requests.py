"""What is asked for when terms of a content policy are added, and when a text is checked."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from services.core.model import terms
from services.core.model.body import Body
from services.core.model.requests import PROMPT_LIMIT


def _term(value: str) -> str:
    if not terms.folded(value):
        raise PydanticCustomError("invalid_value", "")
    return value


class TermRequest(Body):
    """A new term: a word or a phrase."""

    ALLOWED: ClassVar = {
        "term": f"a word or a phrase of 1 to {terms.LONGEST} printable characters, with a letter or a digit"
    }
    term: Annotated[
        str,
        Field(min_length=1, max_length=terms.LONGEST, pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$"),
        AfterValidator(_term),
    ]


class CheckRequest(Body):
    """A text that is checked as a prompt is."""

    ALLOWED: ClassVar = {"text": f"text of 1 to {PROMPT_LIMIT:,} characters"}
    text: Annotated[str, Field(min_length=1, max_length=PROMPT_LIMIT)]


class AcceptRequest(Body):
    """Which licence is accepted: the one of this sha256, or whichever the model has now."""

    ALLOWED: ClassVar = {"sha256": "the licence's sha256 as the model shows it: 64 hexadecimal digits"}
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = None  # type: ignore[assignment]
