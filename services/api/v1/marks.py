"""Marks of a job's pictures: who accepted, rejected or starred which, and setting them."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from services.api import openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError, SubmissionError
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.marks import marks
from services.core.marks.asked import Mark, MarksRequest, Matching
from services.core.marks.marks import Changed
from services.core.model import ids
from services.core.model.errors import InvalidSubmission

router = APIRouter(route_class=TenantRoute)


class MarkCounts(BaseModel):
    accepted: int
    rejected: int
    starred: int


class ImageMark(BaseModel):
    """One image's mark, who set it (such as `key/` and the key's id) and when."""

    index: int
    mark: Mark
    by: str
    at: Moment


class MarkPage(BaseModel):
    """`counts` are of the whole job."""

    counts: MarkCounts
    data: list[ImageMark]
    next_cursor: str | None


class MarksChanged(BaseModel):
    """`matched` images were meant, and the marks of `changed` of them are new. With `next_cursor`, send the same body
    again with it as `cursor`: there are more images to look at."""

    object: Literal["job.marks"] = "job.marks"
    matched: int
    changed: int
    next_cursor: str | None


@router.get("/jobs/{job_id}/marks", response_model=MarkPage)
def list_marks(
    context: ContextDep,
    tenant: Tenant,
    job_id: str,
    mark: parameters.Mark = None,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The marks of the job's images, by index: all, or those of one kind."""
    number = ids.parse_job(job_id)
    listing = f"marks/{tenant}/{number}/{mark}"
    after = -1 if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        counts, found = marks.listed(connection, tenant, number, mark=mark, after=after, limit=limit + 1)
    page = found[:limit]
    more = pagination.encode_cursor(context.settings.secret, listing, page[-1].index) if len(found) > limit else None
    data = [ImageMark(index=one.index, mark=one.mark, by=one.actor, at=one.at) for one in page]
    return MarkPage(counts=MarkCounts(**counts), data=data, next_cursor=more)


@router.put("/jobs/{job_id}/marks", response_model=MarksChanged, openapi_extra=openapi.body(MarksRequest))
def mark_images(context: ContextDep, tenant: Tenant, job_id: str, body: json_object.Small) -> Any:
    """Sets or removes the mark of done images: those of `indexes`, or those that are `matching`, some thousands at a
    time. A mark that is there already stays as it is, with who set it and when: so this may be repeated."""
    number = ids.parse_job(job_id)
    asked = json_object.parse(MarksRequest, body, MarksRequest.ALLOWED)
    if (asked.indexes is None) == (asked.matching is None):
        raise ApiError(422, "invalid_value", "Give either indexes or matching: the images that get the mark.")
    mark: Mark | None = None if asked.mark == "none" else asked.mark
    if asked.indexes is None:
        return _mark_matching(context, tenant, number, asked.matching, asked.cursor, mark)
    try:
        with context.database.begin(tenant) as connection:
            changed = marks.put(connection, tenant, number, asked.indexes, mark)
    except InvalidSubmission as error:
        raise SubmissionError(error, "index") from None
    return _changed(changed, None)


def _mark_matching(
    context: Context, tenant: int, number: int, which: Matching, cursor: str | None, mark: Mark | None
) -> MarksChanged:
    listing = f"marking/{tenant}/{number}/{which.mark}/{which.flagged}"
    after = -1 if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.begin(tenant) as connection:
        changed = marks.put_matching(
            connection, tenant, number, mark, after=after, which=which.mark, flagged=which.flagged
        )
    more = None
    if changed.reached is not None:
        more = pagination.encode_cursor(context.settings.secret, listing, changed.reached)
    return _changed(changed, more)


def _changed(found: Changed, more: str | None) -> MarksChanged:
    return MarksChanged(matched=found.matched, changed=found.changed, next_cursor=more)
