"""Signing in by an OpenID Connect provider: there, and back to where one was."""

import base64
import hmac
import json
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import dependencies
from services.api.dependencies import Context, ContextDep
from services.core.model.errors import NotFound
from services.core.tenants import sessions
from services.dashboard import access, rendering
from services.dashboard.oidc import Begun, Person, Provider, SignInFailed
from services.dashboard.pages import sign_in
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
COOKIE = "presswork_provider"
_SECONDS = 600
_LONGEST_ANSWER = 4000


@router.get("/sign-in/provider")
def begin(request: Request, context: ContextDep, next: str = "/") -> Any:  # noqa: A002  as in the address
    provider = _provider(request, context)
    base = dependencies.base_url(context.settings, request)
    begun = Begun.new(sign_in.place(next), f"{base}/sign-in/provider/callback")
    answer = RedirectResponse(provider.address(begun), 303, {"Cache-Control": "no-store"})
    sign_in.set_cookie(answer, request, COOKIE, _sealed(context.settings.secret, begun), _SECONDS)
    return answer


@router.get("/sign-in/provider/callback")
def finish(request: Request, context: ContextDep) -> Any:
    provider = _provider(request, context)
    begun = _opened(context.settings.secrets, request.cookies.get(COOKIE, ""))
    if begun is None or len(request.url.query) > _LONGEST_ANSWER:
        raise SignInFailed("This sign-in was begun in another browser, or more than ten minutes ago: begin again.")
    person = provider.finish(begun, dict(request.query_params))
    cookie = _begin(context, person)
    answer = RedirectResponse(rendering.address(request, begun.back), 303, {"Cache-Control": "no-store"})
    sign_in.set_cookie(answer, request, access.COOKIE, cookie, sessions.USER_SECONDS)
    answer.delete_cookie(COOKIE, path=sign_in.cookie_path(request))
    return answer


def _begin(context: Context, person: Person) -> str:
    with context.database.begin_system() as connection:  # as the system: the provider decides which tenant this is
        cookie = sessions.begin_user(connection, person.name, person.scopes, person.tenant)
    if cookie is None:
        raise SignInFailed("The provider names no tenant of this Presswork for you; ask whoever runs it.", 403)
    return cookie


def _provider(request: Request, context: Context) -> Provider:
    if not context.settings.oidc_issuer:
        raise NotFound("No provider is configured here; sign in with an API key.")
    found: Provider | None = getattr(request.app.state, "provider", None)
    if found is None:
        found = request.app.state.provider = Provider(context.settings)
    return found


def _sealed(secret: str, begun: Begun) -> str:
    text = base64.urlsafe_b64encode(json.dumps(asdict(begun)).encode()).decode()
    return f"{text}.{_proof(secret, text)}"


def _opened(secrets: tuple[str, ...], cookie: str) -> Begun | None:
    text, _, proof = cookie.partition(".")
    if not any(hmac.compare_digest(proof.encode(), _proof(secret, text).encode()) for secret in secrets):
        return None
    return Begun(**json.loads(base64.urlsafe_b64decode(text)))


def _proof(secret: str, text: str) -> str:
    return hmac.digest(secret.encode(), b"presswork sign-in\n" + text.encode(), "sha256").hex()
