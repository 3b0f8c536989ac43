"""Links that sign a browser in to the dashboard, once, as the key that asked for them."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from services.api import dependencies
from services.api.authentication import Caller, Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.tenants import sessions

router = APIRouter(route_class=TenantRoute)
Next = Annotated[
    str | None,
    Query(max_length=500, description="the page to show, such as /jobs", pattern=r"^/[\x21-\x7e]*$"),
]


class SignInLink(BaseModel):
    """`url` signs one browser in, until `expires_at`. What signs in stands behind its #, which no browser sends."""

    object: Literal["sign_in_link"] = "sign_in_link"
    url: str
    expires_at: Moment


@router.post("/sign-in-links", status_code=201, response_model=SignInLink)
def create_sign_in_link(
    request: Request,
    context: ContextDep,
    tenant: Tenant,  # noqa: ARG001  whose turn it is
    caller: Caller,
    next: Next = None,  # noqa: A002  as in the address
) -> Any:
    """A link that opens the dashboard, signed in as this key. It is good once, for two minutes."""
    # As the system: a tenant's transaction can write none.
    with context.database.begin_system() as connection:
        token, expires_at = sessions.new_link(connection, caller)
    place = f"?next={quote(next, safe='/')}" if next else ""
    url = f"{dependencies.base_url(context.settings, request)}/sign-in{place}#link={token}"
    return SignInLink(url=url, expires_at=expires_at)
