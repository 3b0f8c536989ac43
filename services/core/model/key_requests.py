"""What is asked for when a key is created."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from services.core.model.body import Body
from services.core.model.scopes import ALL

_DAY = 24 * 3600
_WORDS = ", ".join(f'"{scope.value}"' for scope in ALL)


class KeyRequest(Body):
    """A new key: what it is for, what it may do, and when it expires, if ever."""

    ALLOWED: ClassVar = {
        "name": "1 to 64 printable characters that say what the key is for",
        "scopes": f"a list of one or more of {_WORDS}; left out, it has those of the key that asks",
        "expires_in_seconds": "a whole number from 60 to 315360000; left out, the key does not expire",
    }
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$")]
    scopes: Annotated[list[Literal["view", "submit", "operate", "admin"]], Field(min_length=1, max_length=4)] = None  # type: ignore[assignment]
    expires_in_seconds: Annotated[int, Field(ge=60, le=3650 * _DAY)] = None  # type: ignore[assignment]
