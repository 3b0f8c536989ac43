"""Authentication: one bearer key names one tenant, and has the scope that the operation takes."""

import math
import re
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from services.api import scopes
from services.api.dependencies import ContextDep, client
from services.api.errors import ApiError
from services.core.db import actors
from services.core.model.errors import InvalidKey
from services.core.model.scopes import Principal
from services.core.tenants import api_keys

_BEARER = re.compile(r"bearer +(pw_[A-Za-z0-9]{8}_[A-Za-z0-9]{43})", re.IGNORECASE | re.ASCII)
_KEY_NAMES = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token", "authorization"})

documented = HTTPBearer(auto_error=False, description="An API key, `pw_...`.")


def authenticate(request: Request, context: ContextDep) -> Principal:
    """Whom the request's key stands for. Raises ApiError, or MissingScope if the key may not do this."""
    for name, value in request.query_params.multi_items():
        if name.lower() in _KEY_NAMES or value.startswith("pw_"):
            raise ApiError(400, "key_in_query", "An API key goes into the Authorization header, never into an address.")
    given = request.headers.getlist("authorization")
    found = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    try:
        if found is None:
            raise InvalidKey
        context.guesses.admit(client(request), found[1])
        # As the system: the key decides which tenant this is.
        with context.database.begin_system() as connection:
            principal = api_keys.authenticate(connection, context.settings.secrets, found[1])
    except InvalidKey as error:
        if found is not None:  # what is no key costs nothing
            context.guesses.wrong(client(request), found[1])
        challenge = {"WWW-Authenticate": 'Bearer realm="presswork"'}
        raise ApiError(401, error.code, str(error), headers=challenge) from None
    context.guesses.right(found[1])
    request.state.authenticated = True
    if principal.requests_per_second is not None:
        _take(request, context, principal.tenant_id, principal.requests_per_second)
    operation = request.scope["route"].name
    principal.require(scopes.NEEDED[operation], operation)
    return principal


def _take(request: Request, context: ContextDep, tenant: int, per_second: float) -> None:
    """Takes a token of the tenant's rate limit, and says so in the answer's headers. Raises ApiError."""
    taken = context.rates.take(tenant, per_second)
    wait = max(1, math.ceil(taken.wait))
    window = max(1, round(taken.limit / per_second))
    request.state.rate_limit = {
        "RateLimit-Policy": f'"tenant";q={taken.limit};w={window}',
        "RateLimit": f'"tenant";r={int(taken.left)};t={wait if taken.wait else 0}',
    }
    if not taken.allowed:
        message = f"Your tenant may send {per_second:g} requests a second and sends more; try again in {wait} s."
        raise ApiError(429, "rate_limited", message, headers={"Retry-After": str(wait)})


async def _tenant(principal: "Caller") -> int:
    """Everything that the request does from here on is done by its key: events name it."""
    actors.act_as(principal.actor)
    return principal.tenant_id


Caller = Annotated[Principal, Depends(authenticate)]
Tenant = Annotated[int, Depends(_tenant)]
