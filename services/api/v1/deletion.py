"""Deletes a job with everything that belongs to it, and says beforehand what that would take."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from services.api.authentication import Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.core.crash_points import crash_point
from services.core.deletion import jobs as deletion
from services.core.model import ids

router = APIRouter(route_class=TenantRoute)


class Refusal(BaseModel):
    code: str
    message: str


class JobDeletion(BaseModel):
    """What a DELETE of the job takes: `stored_images` of its `images` are stored. `bytes` covers images, exports and
    output files; of a large job it is an estimate. `refusal` says why the job cannot be deleted now."""

    id: str
    object: Literal["job.deletion"] = "job.deletion"
    images: int
    stored_images: int
    bytes: int
    bytes_estimated: bool
    exports: int
    files: int
    refusal: Refusal | None


class JobDeleted(BaseModel):
    id: str
    object: Literal["job"] = "job"
    deleted: Literal[True] = True


@router.get("/jobs/{job_id}/deletion", response_model=JobDeletion)
def show_deletion(context: ContextDep, tenant: Tenant, job_id: str) -> Any:
    """What deleting the job would take, and why it would be refused. Deletes nothing."""
    number = ids.parse_job(job_id)
    with context.database.read(tenant) as connection:
        found = deletion.stored(connection, tenant, number)
    refusal = found.refusal
    return JobDeletion(
        id=ids.public_job(number),
        images=found.images,
        stored_images=found.stored_images,
        bytes=found.bytes,
        bytes_estimated=found.is_estimate,
        exports=found.exports,
        files=found.files,
        refusal=None if refusal is None else Refusal(code=refusal.code, message=str(refusal)),
    )


@router.delete("/jobs/{job_id}", status_code=202, response_model=JobDeleted)
def delete_job(context: ContextDep, tenant: Tenant, job_id: str) -> Any:
    """Deletes a job that has ended, or an open draft, with its images, exports and output files. They are gone for
    readers when this answers; the space is freed soon after. Files that were uploaded stay."""
    number = ids.parse_job(job_id)
    # As the system: a tenant's transaction can write no row that it would not see, such as a deleted job.
    with context.database.begin_system() as connection:
        deletion.delete(connection, tenant, number)
    crash_point("delete.committed")
    return JobDeleted(id=ids.public_job(number))
