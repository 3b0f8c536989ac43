"""Where the pictures of two versions of a catalogue differ: before and after, side by side."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request

from services.api import pagination, parameters
from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.core.catalogues import catalogues, differences, versions
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.differences import Difference
from services.dashboard import access, rendering
from services.dashboard.pages import catalogue_runs
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 18
_OFFERED = 100
_LAST_VERSION = 2**31 - 1


@router.get("/catalogues/{name}/diff")
def show_diff(
    request: Request, context: ContextDep, visitor: access.Signed, name: str,
    before: Annotated[str, Query(alias="from")] = "", to: str = "", cursor: str = "",
) -> Any:  # fmt: skip
    """From one version to another; left out: from the one before the published one, to that."""
    visitor.require("view")
    with context.database.read(visitor.tenant) as connection:
        found = catalogues.find(connection, visitor.tenant, name)
        kept = versions.page(connection, found.id, before=_LAST_VERSION, limit=_OFFERED)
        after = versions.meant(connection, found, _number(to))
        older = [one.version for one in kept if one.version < after]
        asked = _number(before)
        first = versions.meant(connection, found, asked) if asked is not None else (older or [after])[0]
        listing = f"pages/diff/{visitor.tenant}/{found.id}/{first}/{after}"
        behind = pagination.decode_place(context.settings.secrets, listing, cursor or None)
        page, reached = differences.page(connection, found.id, first, after, behind=behind, limit=_PER_PAGE)
    here = f"/catalogues/{name}/diff?{urlencode({'from': first, 'to': after})}"
    more = reached and pagination.encode_place(context.settings.secret, listing, reached)
    return rendering.page(
        request,
        "catalogue_diff.html",
        visitor=visitor,
        catalogue=found,
        offered=sorted({one.version for one in kept} | {first, after}, reverse=True),
        first=first,
        after=after,
        differences=[(one, *_addresses(found, one, first, after)) for one in page],
        is_first=not cursor,
        here=here,
        next_page=more and f"{here}&{urlencode({'cursor': more})}",
    )


def _addresses(catalogue: Catalogue, one: Difference, first: int, after: int) -> tuple[str, str]:
    """Of the pictures before and after, without `/thumbnail` or `/picture`; empty: that version has none."""
    return (
        catalogue_runs.of_version(catalogue, first, one.item, one.variant) if one.before else "",
        catalogue_runs.of_version(catalogue, after, one.item, one.variant) if one.after else "",
    )


def _number(given: str) -> int | None:
    if given and not parameters.is_whole(given):
        raise ApiError(400, "invalid_parameter", "from and to must be numbers of kept versions.")
    return int(given) if given else None
