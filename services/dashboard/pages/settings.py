"""The API keys of the tenant: what each may do, who made it and when it was last used; making one and revoking one."""

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.errors import SubmissionError
from services.api.v1 import keys
from services.core.model.errors import NotFound
from services.core.model.key_requests import KeyRequest
from services.core.model.scopes import ALL, Scope
from services.core.tenants import api_keys
from services.dashboard import access, forms, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_DAY = 24 * 3600
LIFETIMES = {"": "never", "1": "after a day", "7": "after a week", "30": "after 30 days", "90": "after 90 days",
             "365": "after a year"}  # fmt: skip
MEANINGS = {
    Scope.VIEW: "look at everything",
    Scope.SUBMIT: "make jobs, retries and exports",
    Scope.OPERATE: "pause, cancel, delete, mark, drain",
    Scope.ADMIN: "make and revoke keys",
}


@router.get("/settings")
def show_settings(request: Request, context: ContextDep, visitor: access.Signed) -> Any:  # noqa: ARG001
    first = "keys" if visitor.may("admin") else "log"
    return RedirectResponse(rendering.address(request, f"/settings/{first}"), 303)


@router.get("/settings/keys")
def show_keys(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("admin", "the list of keys")
    return _page(request, context, visitor)


@router.post("/settings/keys")
def make_key(request: Request, context: ContextDep, visitor: access.Signed, form: forms.Posted) -> Any:
    """Shows the new key, this once."""
    visitor.require("admin", "making a key")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    try:
        made, found = keys.issue(context, visitor.principal, _asked(form))
    except SubmissionError as error:
        return _page(request, context, visitor, status=422, form=form, refusal=str(error))
    return _page(request, context, visitor, made=made, name=found.name)


@router.get("/settings/keys/{key_id}/revoke")
def ask(request: Request, context: ContextDep, visitor: access.Signed, key_id: str) -> Any:
    visitor.require("admin", "revoking a key")
    key = next((one for one in _listed(context, visitor) if one.id == key_id and one.status == "active"), None)
    if key is None:
        raise NotFound("There is no such key, or it has ended.")
    return rendering.page(
        request,
        "confirm.html",
        visitor=visitor,
        title=f"Revoke {key.name}?",
        sentence=f"The next request with {key.prefix}… is refused, and whoever is signed in with it is signed out. "
        "Jobs that it made stay. This is final.",
        refusal="",
        action=f"/settings/keys/{key.id}/revoke",
        back="/settings/keys",
        button="Revoke",
        choice="",
        danger=True,
    )


@router.post("/settings/keys/{key_id}/revoke")
def revoke(request: Request, context: ContextDep, visitor: access.Signed, key_id: str, form: forms.Posted) -> Any:
    visitor.require("admin", "revoking a key")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    keys.revoke(context, visitor.principal, key_id)
    return RedirectResponse(rendering.address(request, "/settings/keys"), 303)


def _asked(form: forms.Form) -> KeyRequest:
    """Raises SubmissionError, or ApiError."""
    asked: dict[str, Any] = {"name": form.get("name", "").strip()}
    asked["scopes"] = [scope.value for scope in ALL if form.get(f"scope-{scope.value}")]
    if form.get("days", "") in LIFETIMES and form.get("days"):
        asked["expires_in_seconds"] = int(form["days"]) * _DAY
    return json_object.parse(KeyRequest, json.dumps(asked).encode(), KeyRequest.ALLOWED)


def _listed(context: Context, visitor: access.Visitor) -> list[api_keys.Key]:
    with context.database.read(visitor.tenant) as connection:
        return api_keys.listed(connection, visitor.tenant)


def _page(
    request: Request,
    context: Context,
    visitor: access.Visitor,
    *,
    status: int = 200,
    form: forms.Form | None = None,
    refusal: str = "",
    made: str = "",
    name: str = "",
) -> Response:
    listed = _listed(context, visitor)[::-1]
    return rendering.page(
        request,
        "keys.html",
        visitor=visitor,
        status=status,
        live=[key for key in listed if key.status == "active"],
        ended=[key for key in listed if key.status != "active"],
        scopes=[(scope.value, MEANINGS[scope]) for scope in ALL if scope in visitor.principal.scopes],
        lifetimes=LIFETIMES.items(),
        given=form or {"scope-view": "on"},
        refusal=refusal,
        made=made,
        name=name,
    )
