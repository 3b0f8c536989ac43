"""Images by the custom_id of their request, in all jobs. With `job` in the address it is that job's gallery, so that a
saved view of images may be of either."""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api.dependencies import ContextDep
from services.api.v1 import search
from services.core.jobs import queries
from services.core.model import ids
from services.dashboard import access, reading, rendering
from services.dashboard.choice import Chosen
from services.dashboard.pages import views
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 48
_MOST_TEXT = 128


@router.get("/images")
def find_images(
    request: Request,
    context: ContextDep,
    visitor: access.Signed,
    chosen: Chosen,
    job: str = "",
    custom_id: str = "",
    cursor: str = "",
) -> Any:
    visitor.require("view")
    if job:
        gallery = f"/jobs/{ids.public_job(ids.parse_job(job))}/images{chosen.query}"
        return RedirectResponse(rendering.address(request, gallery), 303)
    wanted = custom_id.strip()[:_MOST_TEXT].replace("\0", "")
    images: list[queries.ImageView] = []
    more = None
    if wanted:
        tenant = visitor.tenant
        images, more = search.images_named(context, tenant, wanted, limit=_PER_PAGE, cursor=cursor or None)
    with context.database.read(visitor.tenant) as connection:
        jobs = queries.these_jobs(connection, visitor.tenant, {image.job_id for image in images})
    query = urlencode({"custom_id": wanted}) if wanted else ""
    here = f"/images?{query}"
    return rendering.page(
        request,
        "find.html",
        visitor=visitor,
        wanted=wanted,
        menus={"views": views.menu(context, visitor, "images", query)},
        images=[(ids.public_job(image.job_id), image) for image in images],
        jobs={shown.id: shown for shown in map(reading.Shown, jobs)},
        first_page=here if cursor else "",
        next_page=more and f"{here}&{urlencode({'cursor': more})}",
    )
