"""Near-duplicates: groups of pictures that look alike, of a job or of all jobs with a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request

from services.api import pagination, parameters
from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.core.jobs import near_duplicates, queries
from services.core.jobs.near_duplicates import MOST_BITS, USUAL_BITS, Found, Place
from services.core.jobs.queries import ImageView
from services.core.model import ids
from services.dashboard import access, reading, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_LOOKED_AT = 10_000  # images of one page
_GROUPS, _PICTURES = 24, 12  # that are shown of them, and of a group


@dataclass(frozen=True, slots=True)
class Asked:
    """Which images, and how alike they must be. `first`: how many groups of this part were shown before."""

    label: str
    bits: int
    cursor: str
    first: int

    def query(self, **other: object) -> str:
        """The part of an address behind the path."""
        given = {"label": self.label, "distance": self.bits, "cursor": self.cursor, "first": self.first} | other
        usual = {"label": "", "distance": USUAL_BITS, "cursor": "", "first": 0}
        told = {name: value for name, value in given.items() if value != usual[name]}
        return f"?{urlencode(told)}" if told else ""


def _asked(label: str = "", distance: str = str(USUAL_BITS), cursor: str = "", first: str = "0") -> Asked:
    if not parameters.is_whole(distance) or int(distance) > MOST_BITS or not parameters.is_whole(first):
        raise ApiError(400, "invalid_parameter", f"distance must be a whole number from 0 to {MOST_BITS}.")
    if "\0" in label:
        raise ApiError(400, "invalid_parameter", "label must be a label's name, a colon and its value.")
    return Asked(label.strip()[:600], int(distance), cursor, int(first))


Wished = Annotated[Asked, Depends(_asked)]


@router.get("/jobs/{job_id}/duplicates")
def show_of_job(request: Request, context: ContextDep, visitor: access.Signed, job_id: str, asked: Wished) -> Any:
    visitor.require("view")
    job = reading.job(context, visitor.tenant, ids.parse_job(job_id))
    listing = f"pages/alike/{visitor.tenant}/{job.view.id}/{asked.bits}"
    _, after = pagination.decode_place(context.settings.secrets, listing, asked.cursor or None)
    with context.database.read(visitor.tenant) as connection:
        found = near_duplicates.of_job(
            connection, visitor.tenant, job.view.id, asked.bits, after=int(after or -1), most=_LOOKED_AT
        )
        shown = _shown(connection, found, asked)
    return _page(request, context, visitor, asked, f"/jobs/{job_id}/duplicates", listing, found, shown, job=job)


@router.get("/duplicates")
def show_of_label(request: Request, context: ContextDep, visitor: access.Signed, asked: Wished) -> Any:
    visitor.require("view")
    name, colon, value = asked.label.partition(":")
    if asked.label and not (name and colon):
        raise ApiError(400, "invalid_parameter", "label must be a label's name, a colon and its value: for:shop.")
    found = Found([], 0, 0, None)
    shown: dict[Place, ImageView] = {}
    jobs: list[queries.JobView] = []
    listing = f"pages/alike/{visitor.tenant}/{asked.label}/{asked.bits}"
    if asked.label:
        job_id, index = pagination.decode_place(context.settings.secrets, listing, asked.cursor or None)
        after = (int(job_id), int(index)) if job_id else None
        with context.database.read(visitor.tenant) as connection:
            found = near_duplicates.of_label(
                connection, visitor.tenant, (name, value), asked.bits, after=after, most=_LOOKED_AT
            )
            shown = _shown(connection, found, asked)
            jobs = queries.these_jobs(connection, visitor.tenant, {job_id for job_id, _ in shown})
    return _page(request, context, visitor, asked, "/duplicates", listing, found, shown, jobs=jobs)


def _shown(connection: Any, found: Found, asked: Asked) -> dict[Place, ImageView]:
    """The pictures of the groups that this page shows."""
    places = [place for group in found.groups[asked.first : asked.first + _GROUPS] for place in group[:_PICTURES]]
    return {(image.job_id, image.index): image for image in queries.images_anywhere(connection, places)}


def _page(
    request: Request, context: ContextDep, visitor: access.Visitor, asked: Asked, path: str, listing: str,
    found: Found, shown: dict[Place, ImageView], *, job: reading.Shown | None = None,
    jobs: Sequence[queries.JobView] = (),
) -> Any:  # fmt: skip
    behind = asked.first + _GROUPS
    following = ""
    if behind < len(found.groups):
        following = asked.query(first=behind)
    elif found.reached is not None:
        place = (str(found.reached[0]), str(found.reached[1]))
        following = asked.query(first=0, cursor=pagination.encode_place(context.settings.secret, listing, place))
    groups = [
        (len(group), [(ids.public_job(place[0]), shown[place]) for place in group[:_PICTURES] if place in shown])
        for group in found.groups[asked.first : behind]
    ]
    return rendering.page(
        request,
        "duplicates.html",
        visitor=visitor,
        job=job,
        jobs={one.id: one for one in map(reading.Shown, jobs)},
        asked=asked,
        found=found,
        groups=groups,
        distances=range(MOST_BITS + 1),
        action=path,
        next_page=following and path + following,
        first_page=path + asked.query(first=0, cursor="") if asked.first or asked.cursor else "",
    )
