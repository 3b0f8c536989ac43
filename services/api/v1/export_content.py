"""The bytes of an export's file: a link that is valid as long as the export, and redirects to a URL that is valid for
minutes."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from services.api import authentication, representations
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1.image_content import Signature
from services.core.exports import records
from services.core.model import file_names
from services.core.model.errors import NotFound
from services.core.storage import signed_urls

router = APIRouter(route_class=TenantRoute)


@router.get(
    "/exports/{export_id}/content/{path:path}",
    status_code=307,
    response_class=RedirectResponse,
    responses={304: {"description": "The client has it: If-None-Match names it."}},
)
def read_export_file(
    request: Request, context: ContextDep, export_id: str, path: str, signature: Signature = None
) -> Any:
    """Redirects to a file of the export. The signed `url` needs no key; without the signature a key is needed. A HEAD
    is answered here, with the file's size: the address in the store is signed for GET alone."""
    tenant = authentication.authenticate(request, context).tenant_id if signature is None else None
    number = records.parse_id(export_id)
    secrets = context.settings.secrets
    if not path.isprintable():
        raise NotFound("There is no such file.")
    if signature is not None and not signed_urls.is_genuine_of_export(secrets, number, path, signature):
        raise NotFound("There is no such file.")
    return sent(request, context, _file(context, tenant, number, path))


def sent(request: Request, context: Context, file: records.File) -> Response:
    """The answer that leads to a stored file."""
    sha256, name = file.sha256.hex(), file.path.rpartition("/")[2]
    if (unchanged := representations.unchanged(request, sha256)) is not None:
        return unchanged
    if request.state.is_head:
        described = {"Content-Length": str(file.bytes), "Content-Disposition": file_names.attachment(name)}
        return Response(headers=representations.headers(sha256) | described, media_type="application/octet-stream")
    address = context.store.presign(file.object_key, context.settings.url_seconds, name)
    return RedirectResponse(address, 307, {"ETag": representations.headers(sha256)["ETag"]})


def _file(context: Context, tenant: int | None, number: int, path: str) -> records.File:
    database = context.database
    # As the system where a signature takes the place of the key: the link names the export and no tenant.
    with database.read_system() if tenant is None else database.read(tenant) as connection:
        export = records.read(connection, number)
        found = records.file(connection, number, path)
    if export is None or export.expired or export.state != "completed" or found is None:
        raise NotFound("There is no such file.")
    return found
