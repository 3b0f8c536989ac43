"""The page of one image: the picture, what it was made from, its mark, and how to make it again."""

from typing import Any

from fastapi import APIRouter, Request

from services.api import dependencies, parameters
from services.api.dependencies import ContextDep
from services.core.jobs import attempts, queries, resubmission
from services.core.model import ids
from services.core.model.errors import NEVER_RETRIED, NotFound
from services.dashboard import access, again, reading, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)


@router.get("/jobs/{job_id}/images/{index}")
def show_image(request: Request, context: ContextDep, visitor: access.Signed, job_id: str, index: str) -> Any:
    visitor.require("view")
    number = ids.parse_job(job_id)
    if not parameters.is_whole(index):
        raise NotFound("There is no such image.")
    with context.database.read(visitor.tenant) as connection:
        view = queries.job(connection, visitor.tenant, number)
        image = queries.image(connection, visitor.tenant, number, int(index))
        if view is None or image is None:
            raise NotFound(f"There is no image {index} of a job {job_id}.")
        rendered = resubmission.of_image(connection, number, image.index)
        failed = attempts.of_image(connection, number, image.index)
    base = dependencies.base_url(context.settings, request)
    return rendering.page(
        request,
        "image.html",
        visitor=visitor,
        job=reading.Shown(view),
        image=image,
        attempts=failed,
        is_refused=any(one.code in NEVER_RETRIED for one in failed),
        rendered=rendered,
        link=dependencies.linker(context, request, number)(int(index)),
        again=again.of_image(base, rendered, image.index) if rendered else [],
    )
