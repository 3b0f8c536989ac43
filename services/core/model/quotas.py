"""Quotas: how much of the installation one tenant may use. None is unlimited."""

from dataclasses import dataclass, fields

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Quotas:
    """`images_queued` wait at once, drafts included; `images_in_flight` are being rendered at once. `bytes_stored` are
    pictures and files written for the tenant, `bytes_spooled` files and parts that it sent. `device_seconds_per_day`
    are seconds of accelerators since 00:00 UTC."""

    images_queued: int | None = None
    images_in_flight: int | None = None
    requests_per_second: float | None = None
    bytes_stored: int | None = None
    bytes_spooled: int | None = None
    device_seconds_per_day: float | None = None


NAMES = tuple(field.name for field in fields(Quotas))
# What each may be: the least and the most.
RANGES: dict[str, tuple[float, float]] = {
    "images_queued": (0, 10**12),
    "images_in_flight": (1, 10**9),
    "requests_per_second": (0.01, 10**6),
    "bytes_stored": (0, 2**60),
    "bytes_spooled": (0, 2**60),
    "device_seconds_per_day": (0, 10**9),
}
WHOLE = frozenset({"images_queued", "images_in_flight", "bytes_stored", "bytes_spooled"})
TITLES = {
    "images_queued": "images queued",
    "images_in_flight": "images in flight",
    "requests_per_second": "requests a second",
    "bytes_stored": "bytes stored",
    "bytes_spooled": "bytes spooled",
    "device_seconds_per_day": "accelerator-seconds a day",
}


def allowed(name: str, no_limit: str = "null") -> str:
    """What a quota may be, for the sentence that refuses another value. `no_limit` is the word for none."""
    least, most = RANGES[name]
    kind = "a whole number" if name in WHOLE else "a number"
    return f"{kind} from {least:g} to {most:.0f}, or {no_limit} for no limit"
