"""Authentication: one bearer key names one tenant. Every failure has the same answer."""

import re
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.core.tenants import api_keys

_BEARER = re.compile(r"bearer +(pw_[A-Za-z0-9]{8}_[A-Za-z0-9]{43})", re.IGNORECASE | re.ASCII)
_KEY_NAMES = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token", "authorization"})

documented = HTTPBearer(auto_error=False, description="An API key, `pw_...`.")


def authenticate(request: Request, context: ContextDep) -> int:
    """The tenant whose key this is."""
    for name, value in request.query_params.multi_items():
        if name.lower() in _KEY_NAMES or value.startswith("pw_"):
            raise ApiError(400, "key_in_query", "An API key goes into the Authorization header, never into an address.")
    given = request.headers.getlist("authorization")
    found = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    tenant = None
    if found is not None:
        # As the system: the key decides which tenant this is.
        with context.database.begin_system() as connection:
            tenant = api_keys.authenticate(connection, context.settings.secrets, found[1])
    if tenant is None:
        raise ApiError(
            401,
            "invalid_api_key",
            "This needs one valid API key, as `Authorization: Bearer pw_...`.",
            headers={"WWW-Authenticate": 'Bearer realm="presswork"'},
        )
    request.state.authenticated = True
    return tenant


Tenant = Annotated[int, Depends(authenticate)]
