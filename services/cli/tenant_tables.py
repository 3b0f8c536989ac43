"""How `presswork tenants` shows tenants: their quotas, and what they use of them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.cli import units
from services.core.model import byte_sizes
from services.core.model.quotas import TITLES

if TYPE_CHECKING:  # a database's library takes as long to import as all the rest
    from services.core.tenants.tenants import Tenant
    from services.core.tenants.usage import Usage


def listed(found: Iterable["Tenant"]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("TENANT", "WEIGHT", "STATE", "QUOTAS", "CREATED"):
        table.add_column(name, justify="right" if name == "WEIGHT" else "left", overflow="fold")
    for each in found:
        limits = [
            f"{_limit(name, limit)} {TITLES[name].removeprefix('bytes ')}"
            for name, limit in _limits(each)
            if limit is not None
        ]
        table.add_row(
            Text(each.name),
            f"{each.weight:g}",
            Text(each.state, style="red" if each.state == "suspended" else ""),
            ", ".join(limits) or "none",
            units.local(each.created_at.isoformat()),
        )
    return table


def one(found: "Tenant", used: "Usage") -> RenderableType:
    """The tenant, and what it uses beside each limit."""
    head = f"{found.name}: {found.state}, weight {found.weight:g}, since {units.local(found.created_at.isoformat())}"
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("QUOTA", "USED", "LIMIT"):
        table.add_column(name, justify="left" if name == "QUOTA" else "right")
    numbers = {
        "images_queued": used.images_queued, "images_in_flight": used.images_in_flight,
        "bytes_stored": used.bytes_stored, "bytes_spooled": used.bytes_spooled,
        "device_seconds_per_day": used.device_seconds_today,
    }  # fmt: skip
    for name, limit in _limits(found):
        shown = "" if name not in numbers else _used(name, numbers[name], limit)
        table.add_row(TITLES[name], shown, "none" if limit is None else _limit(name, limit))
    return Group(head, table)


def _limits(found: "Tenant") -> list[tuple[str, float | None]]:
    return [(name, getattr(found.quotas, name)) for name in TITLES]


def _limit(name: str, number: float) -> str:
    return byte_sizes.exact(int(number)) if name.startswith("bytes_") else f"{number:,.10g}"


def _used(name: str, number: float, limit: float | None) -> str:
    beside = None if limit is None else int(limit)
    return byte_sizes.rounded(number, beside) if name.startswith("bytes_") else f"{number:,.10g}"
