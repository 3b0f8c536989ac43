"""Who is signed in, and what they may do: what the key may do that the session was opened with, or what the provider's
answer gave them.

Routes ask with `require`, and templates with `may` before they show a button.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from services.api.dependencies import Context, ContextDep
from services.core.db import actors
from services.core.model.errors import PressworkError
from services.core.model.scopes import Principal, Scope
from services.core.tenants import sessions
from services.dashboard import forms

COOKIE = "presswork_session"


class SignedOut(PressworkError):
    """Nobody is signed in."""

    def __init__(self, back: str) -> None:
        self.back = back
        super().__init__()


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is signed in. `csrf` stands in every form."""

    principal: Principal
    csrf: str

    @property
    def tenant(self) -> int:
        return self.principal.tenant_id

    @property
    def name(self) -> str:
        return self.principal.name

    def may(self, scope: str) -> bool:
        return Scope(scope) in self.principal.scopes

    def require(self, scope: str, act: str = "this page") -> None:
        """Raises MissingScope: the key does not allow it."""
        self.principal.require(Scope(scope), act)


def find(context: Context, request: Request) -> Visitor | None:
    """Who is signed in; None if nobody is, or not any longer."""
    cookie = request.cookies.get(COOKIE, "")
    if not cookie:
        return None
    with context.database.read_system() as connection:  # as the system: the cookie decides which tenant this is
        found = sessions.find(connection, cookie)
    if found is None:
        return None
    request.state.authenticated = True
    return Visitor(found, forms.token(cookie))


def _signed_in(context: ContextDep, request: Request) -> Visitor:
    visitor = find(context, request)
    if visitor is None:
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        raise SignedOut(asked if request.method == "GET" else "/")
    request.state.visitor = visitor  # for a page that says what went wrong
    return visitor


async def _acting(visitor: Annotated[Visitor, Depends(_signed_in)]) -> Visitor:
    """Everything that the request does from here on is done by the session's key or user: events name them."""
    actors.act_as(visitor.principal.actor)
    return visitor


Signed = Annotated[Visitor, Depends(_acting)]
