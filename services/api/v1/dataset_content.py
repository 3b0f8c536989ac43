"""The bytes of a file of a dataset's version: a link that is valid as long as the dataset, and redirects to a URL that
is valid for minutes."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import authentication, parameters
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1 import export_content
from services.api.v1.image_content import Signature
from services.core.datasets import dataset_records
from services.core.datasets.dataset_records import DatasetFile
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.storage import signed_urls

router = APIRouter(route_class=TenantRoute)


@router.get(
    "/dataset-files/{dataset_id}/{version}/{path:path}",
    status_code=307,
    response_class=RedirectResponse,
    responses={304: {"description": "The client has it: If-None-Match names it."}},
)
def read_dataset_file(
    request: Request,
    context: ContextDep,
    dataset_id: str,
    version: str,
    path: str,
    signature: Signature = None,
) -> Any:
    """Redirects to a file of a version. The signed `url` needs no key; without the signature a key is needed. A HEAD is
    answered here, with the file's size: the address in the store is signed for GET alone."""
    tenant = authentication.authenticate(request, context).tenant_id if signature is None else None
    number = ids.parse(dataset_records.PREFIX, dataset_id, "dataset")
    secrets, numbered = context.settings.secrets, parameters.number(version)
    if not path.isprintable():
        raise NotFound("There is no such file.")
    if signature is not None and not signed_urls.is_genuine_of_dataset(secrets, number, numbered, path, signature):
        raise NotFound("There is no such file.")
    return export_content.sent(request, context, _file(context, tenant, number, numbered, path))


def _file(context: Context, tenant: int | None, number: int, version: int, path: str) -> DatasetFile:
    database = context.database
    # As the system where a signature takes the place of the key: the link names the dataset and no tenant.
    with database.read_system() if tenant is None else database.read(tenant) as connection:
        dataset = dataset_records.read(connection, number)
        if dataset is None or dataset.is_deleted:
            raise NotFound("There is no such file.")
        found = dataset_records.completed(connection, dataset, version)
        file = dataset_records.file(connection, dataset.id, found.number, path)
    if file is None:
        raise NotFound("There is no such file.")
    return file
