"""`presswork keys`: issues, lists and revokes API keys, in the database itself."""

import getpass
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import options, profile, show
from services.cli.exits import guarded
from services.core.model import scopes
from services.core.model.errors import PressworkError
from services.core.model.scopes import Scope
from services.core.settings import Settings

if TYPE_CHECKING:  # the other commands need no database
    from services.core.db.database import Connection

app = typer.Typer(no_args_is_help=True, help="Issue, list and revoke API keys.")
_Expires = Annotated[
    str | None, typer.Option(metavar="AGE", help="When it expires: 12h, 90d, 8w; without, never.", show_default=False)
]
_Scopes = Annotated[
    list[Scope] | None,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="What it may do: view, submit, operate or admin; may be repeated. Without, everything.",
        show_default=False,
    ),
]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")] = "default",
    scope: _Scopes = None,
    expires: _Expires = None,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", metavar="NAME", help="Whose it is; without, the first tenant's.", show_default=False),
    ] = None,
) -> None:
    """Issue an API key and print it. It cannot be shown again.

    The scopes: view reads; submit makes work; operate pauses, cancels and deletes; admin creates keys and changes the
    content policy. None includes another. To rotate a key, create the new one, use it, then revoke the old one: both
    hold until then. Needs DATABASE_URL and PRESSWORK_SECRET.
    """
    from services.core.tenants import api_keys, tenants

    seconds = None if expires is None else options.span(expires, "--expires").total_seconds()
    settings = profile.settings()
    if not settings.secret:
        raise PressworkError("PRESSWORK_SECRET is not set; stored keys are hashed with it.")
    with database(settings, "keys") as connection:
        number = api_keys.default_tenant(connection) if tenant is None else tenants.find(connection, tenant).id
        key = api_keys.issue_key(
            connection, settings.secret, number, name, given=scope or scopes.ALL, expires_seconds=seconds
        )
    show.render(key)


def list_all(
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="NAME", help="Only this tenant's keys.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the API keys, without their secrets.

    Needs DATABASE_URL.
    """
    from services.core.tenants import api_keys, tenants

    with database(profile.settings(), "keys") as connection:
        found = api_keys.listed(connection, None if tenant is None else tenants.find(connection, tenant).id)
    for key in found if as_json else ():
        moments = {name: _moment(at) for name, at in asdict(key).items() if name.endswith("_at")}
        show.document({**asdict(key), "prefix": key.prefix, **moments})
    if not as_json:
        show.render(show.keys(found))


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The eight characters after `pw_`.", show_default=False)],
) -> None:
    """Revoke an API key: the next request with it is refused."""
    from services.core.tenants import api_keys

    with database(profile.settings(), "keys") as connection:
        if not api_keys.revoke_key(connection, key_id):
            raise PressworkError(f"There is no valid key {key_id[:20]!r}; `presswork keys list` shows those that are.")
    show.render("revoked")


@contextmanager
def database(settings: Settings, command: str) -> "Iterator[Connection]":
    """A transaction of the system in the database itself, in which the user of this machine acts."""
    from services.core.db import database as databases

    core = databases.Database(settings.database_url, application=f"presswork {command}", pool_size=1)
    try:
        with acting(), core.begin_system() as connection:
            yield connection
    finally:
        core.close()


def acting() -> AbstractContextManager[None]:
    """Within, the user of this machine acts."""
    from services.core.db import actors

    return actors.acting(f"cli/{_user()}")


def _user() -> str:
    """Who runs the command, as the system knows them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in a container
        return str(os.getuid())


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


_COMMANDS: dict[str, Callable[..., Any]] = {"create": create, "list": list_all, "revoke": revoke}
for _name, _verb in _COMMANDS.items():
    app.command(_name)(guarded(_verb))
