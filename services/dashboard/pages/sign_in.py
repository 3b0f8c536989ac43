"""Signing in with an API key, which is exchanged for a cookie, and signing out."""

import re
import secrets
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from services.api.dependencies import Context, ContextDep, client
from services.api.errors import ApiError
from services.core.model.errors import InvalidKey
from services.core.tenants import sessions
from services.dashboard import access, forms, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
FORM_COOKIE = "presswork_form"  # before anybody is signed in
_PLACE = re.compile(r"/(?![/\\])[\x21-\x7e]{0,2000}", re.ASCII)  # a path of ours: no other host, no line break


@router.get("/sign-in")
def show_sign_in(request: Request, context: ContextDep, next: str = "/") -> Any:  # noqa: A002  as in the address
    if access.find(context, request) is not None:
        return RedirectResponse(rendering.address(request, place(next)), 303, {"Cache-Control": "no-store"})
    return _form(request, place(next))


@router.post("/sign-in")
def sign_in(request: Request, context: ContextDep, form: forms.Posted) -> Any:
    forms.check(form, request.cookies.get(FORM_COOKIE, ""))
    back, given = place(form.get("next", "/")), form.get("key", "").strip()
    try:
        context.guesses.admit(client(request), given)
        cookie = _begin(context, given, form.get("link", ""))
    except ApiError as error:
        return _form(request, back, str(error))
    except InvalidKey as error:
        context.guesses.wrong(client(request), given)
        wrong = "This is no valid API key. It begins with pw_ and has 55 characters."
        return _form(request, back, wrong if error.code == "invalid_api_key" else str(error))
    answer = RedirectResponse(rendering.address(request, back), 303, {"Cache-Control": "no-store"})
    set_cookie(answer, request, access.COOKIE, cookie, sessions.SECONDS)
    answer.delete_cookie(FORM_COOKIE, path=cookie_path(request))
    return answer


@router.post("/sign-out")
def sign_out(request: Request, context: ContextDep, form: forms.Posted) -> Any:
    cookie = request.cookies.get(access.COOKIE, "")
    forms.check(form, cookie)
    with context.database.begin_system() as connection:  # as the system: the cookie decides which session this is
        sessions.end(connection, cookie)
    answer = RedirectResponse(rendering.address(request, "/sign-in"), 303, {"Cache-Control": "no-store"})
    answer.delete_cookie(access.COOKIE, path=cookie_path(request))
    return answer


def place(text: str) -> str:
    """Where to go after signing in: a path on this server, whatever the address says."""
    return text if _PLACE.fullmatch(text) else "/"


def _begin(context: Context, key: str, link: str) -> str:
    with context.database.begin_system() as connection:  # as the system: the key decides which tenant this is
        if link:
            return sessions.begin_by_link(connection, link)
        return sessions.begin(connection, context.settings.secrets, key)


def _form(request: Request, back: str, refusal: str = "") -> Response:
    known = request.cookies.get(FORM_COOKIE, "")
    cookie = known or secrets.token_urlsafe(32)
    issuer = request.app.state.context.settings.oidc_issuer
    provider = urlsplit(issuer).hostname if issuer else None
    values: dict[str, Any] = {"csrf": forms.token(cookie), "next": back, "refusal": refusal, "provider": provider}
    answer = rendering.page(request, "sign_in.html", status=401 if refusal else 200, **values)
    if not known:
        set_cookie(answer, request, FORM_COOKIE, cookie, 3600)
    return answer


def set_cookie(answer: Response, request: Request, name: str, value: str, seconds: int) -> None:
    answer.set_cookie(
        name,
        value,
        max_age=seconds,
        path=cookie_path(request),
        secure=rendering.is_secure(request),
        httponly=True,
        samesite="lax",
    )


def cookie_path(request: Request) -> str:
    return rendering.address(request, "") or "/"
