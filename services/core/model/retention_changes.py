"""What is asked for when a tenant's retention rule is changed."""

from typing import Annotated, ClassVar

from pydantic import Field

from services.core.model.body import Body

_DAYS = "a whole number of days from 0 to 36500, or null for ever; left out, it stays as it is"
_Days = Annotated[int, Field(ge=0, le=36_500)] | None


class RetentionChanges(Body):
    """For how many days after its end a job keeps what. Only the fields that are given change."""

    NULL_IS_ABSENT: ClassVar = False
    ALLOWED: ClassVar = {"payloads": _DAYS, "objects": _DAYS, "records": _DAYS}
    payloads: _Days = None
    objects: _Days = None
    records: _Days = None
