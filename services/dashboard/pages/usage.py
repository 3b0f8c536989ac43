"""What the tenant uses, beside its quotas, as GET /v1/usage says it."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from services.api.dependencies import ContextDep
from services.api.v1 import usage
from services.core.model import byte_sizes
from services.core.model.quotas import TITLES
from services.dashboard import access, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)


@router.get("/settings/usage")
def show(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    found = usage.show_usage_of(context, visitor.tenant)
    used = {**found.usage.model_dump(), "device_seconds_per_day": found.usage.device_seconds_today}
    rows = []
    for name, title in TITLES.items():
        limit, is_size = getattr(found.quotas, name), name.startswith("bytes_")
        exact = byte_sizes.exact if is_size else _number
        about = partial(byte_sizes.rounded, beside=limit) if is_size else _number
        value = used.get(name)
        rows.append((title, value, limit, "" if value is None else about(value), "" if limit is None else exact(limit)))
    return rendering.page(request, "usage.html", visitor=visitor, tenant=found.tenant, state=found.state, rows=rows)


def _number(value: float) -> str:
    return f"{value:,.10g}"
