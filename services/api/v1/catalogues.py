"""Catalogues: what they are, the upload that their runs read, and their deletion."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from services.api import dependencies, openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.errors import SubmissionError
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.catalogues import catalogues, copying, definition, destinations
from services.core.catalogues.asked import FileRequest
from services.core.catalogues.definition import Definition
from services.core.files import files
from services.core.model import strict_json
from services.core.model.errors import Conflict, InvalidSubmission, NotFound
from services.core.schedules import definition_times, of_catalogues

router = APIRouter(route_class=TenantRoute)


class CatalogueDestination(BaseModel):
    """Where the published version is copied to. The copy of `version` is at `state`; `announced` is the version that
    the pointer there names. `images` are named, `copied` were copied since the copy began, and `deleted` have gone.
    After a failure it is tried again at `next_at`; null: when the definition or the published version changes."""

    s3: str
    version: int
    state: destinations.State
    announced: int | None
    images: int
    copied: int
    deleted: int
    error: schemas.ImageError | None
    next_at: schemas.Moment | None
    began_at: schemas.Moment
    finished_at: schemas.Moment | None


class Catalogue(BaseModel):
    """A catalogue. `version` is the highest that a run has begun, `published` the one that readers see. Runs read the
    file `file_id`. `public_url` is the address before `/{variant}/{item}` of the published pictures, if everybody may
    see them."""

    object: Literal["catalogue"] = "catalogue"
    name: str
    definition: dict[str, Any]
    file_id: str | None
    version: int
    published: int | None
    public_url: str | None
    destination: CatalogueDestination | None
    created_at: schemas.Moment
    updated_at: schemas.Moment


class CataloguePage(BaseModel):
    data: list[Catalogue]
    next_cursor: str | None


@router.put(
    "/catalogues/{catalogue}",
    response_model=Catalogue,
    responses={201: {"model": Catalogue, "description": "The catalogue is new."}},
    openapi_extra=openapi.body(Definition),
)
def put_catalogue(
    request: Request,
    response: Response,
    context: ContextDep,
    tenant: Tenant,
    catalogue: str,
    body: json_object.Document,
) -> Any:
    """Makes a catalogue, or gives it another definition. What is published stays until a run makes another version.
    With `schedule`, the schedule `catalogue.NAME` runs it."""
    given = json_object.read(body, "source")
    found, problems = definition.read(catalogue, given)
    problems += definition_times.problems(given, context.settings.schedule_seconds)
    if found is None or problems:
        raise SubmissionError(InvalidSubmission(problems), "index")
    base_url = dependencies.base_url(context.settings, request)
    try:
        copying.check(context.settings, context.store, found)
        with context.database.begin(tenant) as connection:
            response.status_code = 200 if catalogues.exists(connection, tenant, catalogue) else 201
            made = catalogues.put(connection, tenant, catalogue, found.model_dump(mode="json", exclude_unset=True))
            of_catalogues.follow(connection, context.settings, made, base_url)
            copied = destinations.find(connection, made.id)
    except InvalidSubmission as error:
        raise SubmissionError(error, "index") from None
    return shown(context, request, made, copied)


@router.get("/catalogues", response_model=CataloguePage)
def list_catalogues(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The tenant's catalogues, by name."""
    listing = f"catalogues/{tenant}"
    after = "" if cursor is None else pagination.decode_name(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = catalogues.page(connection, tenant, after=after, limit=limit + 1)
        page = found[:limit]
        copied = destinations.these(connection, [one.id for one in page])
    more = pagination.encode_name(context.settings.secret, listing, page[-1].name) if len(found) > limit else None
    return CataloguePage(data=[shown(context, request, one, copied.get(one.id)) for one in page], next_cursor=more)


@router.get("/catalogues/{catalogue}", response_model=Catalogue)
def show_catalogue(request: Request, context: ContextDep, tenant: Tenant, catalogue: str) -> Any:
    """One catalogue with its definition."""
    with context.database.read(tenant) as connection:
        found = catalogues.find(connection, tenant, catalogue)
        return shown(context, request, found, destinations.find(connection, found.id))


@router.put("/catalogues/{catalogue}/file", response_model=Catalogue, openapi_extra=openapi.body(FileRequest))
def set_catalogue_file(
    request: Request, context: ContextDep, tenant: Tenant, catalogue: str, body: json_object.Small
) -> Any:
    """Names the uploaded file that runs read from now on, if the source is a file."""
    asked = json_object.parse(FileRequest, body, FileRequest.ALLOWED)
    with context.database.begin(tenant) as connection:
        catalogues.find(connection, tenant, catalogue)
        try:
            file = files.find(connection, tenant, files.parse_id(asked.file_id))
        except NotFound:
            raise NotFound(f"There is no file {strict_json.describe(asked.file_id)}.") from None
        if file.expires_at is not None:
            message = f"The file {asked.file_id} expires; a catalogue needs one that stays, without expires_after."
            raise Conflict(message, "file_expires")
        catalogues.set_file(connection, tenant, catalogue, file.id)
        found = catalogues.find(connection, tenant, catalogue)
        return shown(context, request, found, destinations.find(connection, found.id))


@router.delete("/catalogues/{catalogue}", status_code=204, response_class=Response)
def delete_catalogue(context: ContextDep, tenant: Tenant, catalogue: str) -> Response:
    """Deletes a catalogue with its versions and their pictures; a run that has not ended is cancelled. Links answer 404
    at once, and the objects are deleted soon after. The jobs of its runs stay."""
    with context.database.begin(tenant) as connection:
        of_catalogues.forget(connection, catalogues.find(connection, tenant, catalogue))
        catalogues.remove(connection, tenant, catalogue)
    return Response(status_code=204)


def shown(
    context: Context, request: Request, found: catalogues.Catalogue, copied: destinations.Destination | None
) -> Catalogue:
    return Catalogue(
        name=found.name,
        definition=found.definition,
        file_id=None if found.file_id is None else files.public_id(found.file_id),
        version=found.version,
        published=found.published,
        public_url=public_url(dependencies.base_url(context.settings, request), found),
        destination=destination(copied),
        created_at=found.created_at,
        updated_at=found.updated_at,
    )


def destination(found: destinations.Destination | None) -> CatalogueDestination | None:
    if found is None:
        return None
    return CatalogueDestination(
        s3=found.place,
        version=found.version,
        state=found.state,
        announced=found.announced,
        images=found.counts.get("images", 0),
        copied=found.counts.get("copied", 0),
        deleted=found.counts.get("deleted", 0),
        error=None if found.error is None else schemas.ImageError(**found.error),
        next_at=found.next_at,
        began_at=found.began_at,
        finished_at=found.finished_at,
    )


def public_url(base_url: str, found: catalogues.Catalogue) -> str | None:
    """What the public links of a catalogue begin with; None if there are none."""
    is_public = found.definition.get("publish", {}).get("public", False)
    return f"{base_url}/c/{found.public_id}" if is_public else None
