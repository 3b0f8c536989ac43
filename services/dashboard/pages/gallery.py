"""The gallery: a job's images page by page, by state, cause, mark or scores, or those that a text is found in."""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request

from services.api import pagination
from services.api.dependencies import ContextDep
from services.core.db.database import Connection
from services.core.jobs import failures, image_pages, scored, search
from services.core.jobs.queries import ImageView
from services.core.marks import marks
from services.core.model import ids
from services.core.model.errors import NEVER_RETRIED
from services.dashboard import access, reading, rendering
from services.dashboard.choice import STATES, Choice, Chosen
from services.dashboard.pages import marking, views
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 48


@router.get("/jobs/{job_id}/images")
def show_gallery(
    request: Request, context: ContextDep, visitor: access.Signed, job_id: str, chosen: Chosen, cursor: str = ""
) -> Any:
    visitor.require("view")
    number = ids.parse_job(job_id)
    job = reading.job(context, visitor.tenant, number, with_time_left=False)
    listing = _listing(visitor.tenant, number, chosen)
    with context.database.read(visitor.tenant) as connection:
        if chosen.scores is None:
            place = pagination.decode_cursor(context.settings.secrets, listing, cursor) if cursor else None
            images, more, searched = _page(connection, visitor.tenant, number, chosen, place)
            encoded = more and pagination.encode_cursor(context.settings.secret, listing, more)
        else:
            after = pagination.decode_score(context.settings.secrets, listing, cursor or None)
            page = scored.page(connection, visitor.tenant, number, chosen.scores, after=after, limit=_PER_PAGE)
            images, searched = page.images, None
            encoded = page.place and pagination.encode_score(context.settings.secret, listing, page.place)
        names = scored.names(connection, number)
        marked = marks.counts(connection, visitor.tenant, number)
        causes = failures.of_job(connection, visitor.tenant, number) if job.counts["failed"] else []
    here = f"/jobs/{job_id}/images{chosen.query}"
    join = "&" if chosen.query else "?"
    of_job = f"job={job.id}&"
    return rendering.page(
        request,
        "gallery.html",
        visitor=visitor,
        job=job,
        images=images,
        searched=searched,
        chosen=chosen,
        states=list(STATES),
        marked=marked,
        causes=causes,
        unmarked=Choice(mark=image_pages.UNMARKED).marked(job.counts, marked),
        retry=_retry(job, visitor, chosen),
        is_of_refused=chosen.cause in NEVER_RETRIED,
        to_mark=chosen.marked(job.counts, marked),
        verbs=marking.VERBS,
        address=lambda **given: f"/jobs/{job_id}/images{Choice(**given).query}",
        is_first=not cursor,
        score_names=names,
        order=chosen.scores and chosen.scores.order,
        menus={"views": views.menu(context, visitor, "images", (of_job + chosen.query[1:]).rstrip("&"), of=of_job)},
        first_page=here,
        here=here + (f"{join}{urlencode({'cursor': cursor})}" if cursor else ""),
        next_page=encoded and f"{here}{join}{urlencode({'cursor': encoded})}",
    )


def _retry(job: reading.Shown, visitor: access.Visitor, chosen: Choice) -> str:
    """The path of the question whether the failed images that match are tried again; empty: they cannot be."""
    is_about_failed = chosen.state == "failed" or (chosen.cause and chosen.cause not in NEVER_RETRIED)
    if not (is_about_failed and job.is_final and job.counts["failed"] and visitor.may("submit")):
        return ""
    return f"/jobs/{job.id}/actions/retry" + (f"?{urlencode({'cause': chosen.cause})}" if chosen.cause else "")


def _listing(tenant: int, number: int, chosen: Choice) -> str:
    return f"pages/images/{tenant}/{number}{chosen.query}"


def _page(
    connection: Connection, tenant: int, number: int, chosen: Choice, place: int | None
) -> tuple[list[ImageView], int | None, int | None]:
    """A page of images, where the next one begins, and up to how many of the job's images a text was looked for."""
    if chosen.q:
        found = search.search(connection, tenant, number, chosen.q, start=place or 0, limit=_PER_PAGE)
        return found.images, found.reached, found.searched
    page = image_pages.page(connection, tenant, number, chosen.wanted, place=place, limit=_PER_PAGE)
    return page.images, page.place, None
