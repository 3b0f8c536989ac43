"""What is asked for when a tenant is made or changed."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from services.core.model import quotas
from services.core.model.body import Body

State = Literal["active", "suspended"]
NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
PREFIX = "tenant_"  # of ids, so no name begins like this
ALLOWED = {
    "name": "1 to 63 lower-case letters, digits, dots, dashes and underscores, and not begin with tenant_",
    "weight": "a number from 0.01 to 100: a tenant of weight 2 gets twice the share of one of weight 1",
    "state": '"active" or "suspended"',
    "quotas": f"an object with any of {', '.join(quotas.NAMES)}",
    **{f"quotas.{name}": quotas.allowed(name) for name in quotas.NAMES},
}
Name = Annotated[str, Field(pattern=NAME, max_length=63)]
Weight = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]


def _quota(name: str) -> Any:
    least, most = quotas.RANGES[name]
    return Field(ge=least, le=most, allow_inf_nan=False) if name not in quotas.WHOLE else Field(ge=least, le=most)


class QuotaChanges(Body):
    """Quotas to be set; null takes a limit away, and what is left out stays."""

    NULL_IS_ABSENT: ClassVar[bool] = False
    images_queued: Annotated[int, _quota("images_queued")] | None = None
    images_in_flight: Annotated[int, _quota("images_in_flight")] | None = None
    requests_per_second: Annotated[float, _quota("requests_per_second")] | None = None
    bytes_stored: Annotated[int, _quota("bytes_stored")] | None = None
    bytes_spooled: Annotated[int, _quota("bytes_spooled")] | None = None
    device_seconds_per_day: Annotated[float, _quota("device_seconds_per_day")] | None = None


class TenantRequest(Body):
    """A new tenant. Without a weight it has 1, and without quotas nothing limits it."""

    ALLOWED: ClassVar = ALLOWED
    name: Name
    weight: Weight = None  # type: ignore[assignment]
    quotas: QuotaChanges = None  # type: ignore[assignment]


class TenantChanges(Body):
    """What is left out stays."""

    ALLOWED: ClassVar = ALLOWED
    name: Name = None  # type: ignore[assignment]
    weight: Weight = None  # type: ignore[assignment]
    state: State = None  # type: ignore[assignment]
    quotas: QuotaChanges = None  # type: ignore[assignment]
