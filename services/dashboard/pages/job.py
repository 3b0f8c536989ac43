"""The page of a job, and that of each of its images."""

import json
import shlex
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request

from services.api import dependencies, pagination, parameters
from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.core.db.database import Connection
from services.core.events import queries as events
from services.core.exports import records
from services.core.exports.formats import FORMATS
from services.core.jobs import failures, queries, shapes
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.model.states import ImageState
from services.dashboard import access, reading, rendering
from services.dashboard.pages import actions
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_IMAGES = 48
_EVENTS = 200
_EXPORTS = 20
_PAST_THE_NEWEST = 2**63 - 1
_AMONG_OTHERS = 1 << 32
SHOWS = {"": "failed first", **{state.word: state.word for state in ImageState}}


@router.get("/jobs/{job_id}")
def show_job(
    request: Request, context: ContextDep, visitor: access.Signed, job_id: str, show: str = "", cursor: str = ""
) -> Any:
    visitor.require("view")
    number = ids.parse_job(job_id)
    if show not in SHOWS:
        raise ApiError(400, "invalid_parameter", f"There is no such state; there are {', '.join(SHOWS)[2:]}.")
    job = reading.job(context, visitor.tenant, number)
    name = f"pages/images/{visitor.tenant}/{number}/{show}"
    place = pagination.decode_cursor(context.settings.secrets, name, cursor) if cursor else None
    with context.database.begin(visitor.tenant) as connection:
        images, more = _images(connection, visitor.tenant, number, show, place)
        values: dict[str, Any] = {
            "shapes": shapes.of_job(connection, number),
            "events": events.of_subject(connection, visitor.tenant, events.job(number), limit=_EVENTS),
            "causes": failures.of_job(connection, visitor.tenant, number) if job.counts["failed"] else [],
            "exports": records.of_job(connection, visitor.tenant, number, before=_PAST_THE_NEWEST, limit=_EXPORTS)
            if job.is_final
            else [],
        }
    kept = {"show": show} if show else {}
    encoded = None if more is None else pagination.encode_cursor(context.settings.secret, name, more)
    return rendering.page(
        request,
        "job.html",
        visitor=visitor,
        job=job,
        images=images,
        is_first=place is None,
        chosen=show,
        shows=SHOWS.items(),
        formats=list(FORMATS),
        actions=actions.of(job, visitor),
        export_id=records.public_id,
        here=f"/jobs/{job_id}" + (f"?{urlencode(kept)}" if kept else ""),
        next_page=encoded and f"/jobs/{job_id}?{urlencode(kept | {'cursor': encoded})}#images",
        parent=None if job.view.retry_of is None else ids.public_job(job.view.retry_of),
        **values,
    )


@router.get("/jobs/{job_id}/images/{index}")
def show_image(request: Request, context: ContextDep, visitor: access.Signed, job_id: str, index: str) -> Any:
    visitor.require("view")
    number = ids.parse_job(job_id)
    if not parameters.is_whole(index):
        raise NotFound("There is no such image.")
    with context.database.begin(visitor.tenant) as connection:
        view = queries.job(connection, visitor.tenant, number)
        image = queries.image(connection, visitor.tenant, number, int(index))
        if view is None or image is None:
            raise NotFound(f"There is no image {index} of a job {job_id}.")
        shape = shapes.of_job(connection, number)
    only = shape[0] if len(shape) == 1 else None
    link = dependencies.linker(context, request, number)(int(index))
    again = _again(dependencies.base_url(context.settings, request), image, only)
    values: dict[str, Any] = {"job": reading.Shown(view), "image": image, "shape": only, "link": link, "again": again}
    return rendering.page(request, "image.html", visitor=visitor, **values)


def _images(
    connection: Connection, tenant: int, number: int, show: str, place: int | None
) -> tuple[list[queries.ImageView], int | None]:
    """A page of images, and where the next one goes on. Failed first, bit 32 says that all failed ones were listed."""
    after = -1 if place is None else place % _AMONG_OTHERS
    limit = _IMAGES + 1
    if show:
        found = queries.images(connection, tenant, number, state=ImageState[show.upper()], after=after, limit=limit)
    else:
        failed = place is None or place < _AMONG_OTHERS
        found = queries.images_failed_first(connection, tenant, number, failed=failed, after=after, limit=limit)
    page = (found or [])[:_IMAGES]
    if found is None or len(found) <= _IMAGES:
        return page, None
    among = 0 if show or page[-1].state is ImageState.FAILED else _AMONG_OTHERS
    return page, among + page[-1].index


def _again(base: str, image: queries.ImageView, shape: shapes.JobShape | None) -> list[tuple[str, str]]:
    """The same image asked for again, by curl, the command and Python."""
    asked: dict[str, Any] = {"prompt": image.payload.prompt, "seed": image.seed}
    if image.payload.negative_prompt:
        asked["negative_prompt"] = image.payload.negative_prompt
    if shape is not None:
        asked |= {"model": shape.model, "size": f"{shape.width}x{shape.height}", "num_inference_steps": shape.steps}
    asked |= {"guidance_scale": image.payload.guidance_scale, "output_format": image.payload.output_format}
    body = json.dumps({"images": [asked]}, ensure_ascii=False)
    curl = (
        f'curl -s {base}/v1/jobs -H "Authorization: Bearer $PRESSWORK_API_KEY" \\\n'
        f'  -H "Content-Type: application/json" \\\n  -d {shlex.quote(body)}'
    )
    line = shlex.quote(json.dumps(asked, ensure_ascii=False))
    command = f"printf '%s\\n' {line} > again.jsonl\npresswork submit again.jsonl --watch"
    python = (
        "import os\n\nfrom presswork_client import Client\n\n"
        f'with Client({base!r}, os.environ["PRESSWORK_API_KEY"]) as client:\n    client.submit([{asked!r}])'
    )
    return [("curl", curl), ("The command", command), ("Python", python)]
