"""The small bodies that ask something of a catalogue: a run, another upload, another version."""

from datetime import UTC, datetime
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from services.core.catalogues.redrawing import AT_ONCE
from services.core.model.body import Body


def moment(text: str) -> datetime:
    """A date and time with its zone. Raises ValueError."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("without a zone")
    return found.astimezone(UTC)


def _to_come(text: str) -> str:
    try:
        found = moment(text)
    except (ValueError, OverflowError):
        raise PydanticCustomError("invalid_value", "") from None
    if found <= datetime.now(UTC):
        raise PydanticCustomError("invalid_value", "")
    return text


class RunRequest(Body):
    """What a run does."""

    ALLOWED: ClassVar = {
        "plan_only": "true or false: whether the run ends with its plan, and renders and publishes nothing",
        "accept_removed": "true or false: whether more items may be removed than removed_limit allows",
        "deadline": 'a time to come with its zone, such as "2027-01-31T06:00:00Z": when the run writes what there is',
    }
    plan_only: bool = False
    accept_removed: bool = False
    deadline: Annotated[
        str, Field(max_length=40, json_schema_extra={"format": "date-time"}), AfterValidator(_to_come)
    ] = None  # type: ignore[assignment]


class RedrawRequest(Body):
    """The pictures of a review that are drawn again."""

    ALLOWED: ClassVar = {"indexes": f"a list of 1 to {AT_ONCE:,} indexes of changes, as `changes` lists them"}
    indexes: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=AT_ONCE)]


class FileRequest(Body):
    """The uploaded file that runs read from now on."""

    ALLOWED: ClassVar = {"file_id": "the id of a file of yours, as `POST /v1/files` answers it"}
    file_id: Annotated[str, Field(min_length=1, max_length=80)]


class PublishRequest(Body):
    """The version that readers are to see."""

    ALLOWED: ClassVar = {"version": "the number of a kept version, as `versions` lists them"}
    version: Annotated[int, Field(ge=1, lt=2**31)]
