"""`presswork tenants`: makes, lists and changes tenants, in the database itself.

`tenant_deletion.py` deletes one, by the API.
"""

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from services.cli import options, profile, show, tenant_tables
from services.cli.exits import Usage, guarded
from services.cli.keys import database
from services.core.model import byte_sizes, quotas
from services.core.model.tenant_requests import ALLOWED, TenantChanges, TenantRequest

if TYPE_CHECKING:  # the other commands need no database
    from services.core.tenants.tenants import Tenant

app = typer.Typer(no_args_is_help=True, help="Make, list and change tenants, and limit what they use.")
B = TypeVar("B", TenantRequest, TenantChanges)
_NONE = "none"
_GROUPED = re.compile(r"[0-9]{1,3}(?:[,_][0-9]{3})+(?:\.[0-9]+)?")
_Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.", show_default=False)]
_Weight = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="Its share beside others: 2 gets twice what 1 gets.", show_default=False),
]
_Quotas = Annotated[
    list[str] | None,
    typer.Option(
        "--quota",
        metavar="NAME=LIMIT",
        help=f"A limit, or NAME={_NONE} for no limit; may be repeated. Names: {', '.join(quotas.NAMES)}.",
        show_default=False,
    ),
]


def create(name: _Name, weight: _Weight = None, quota: _Quotas = None, as_json: options.Json = False) -> None:
    """Make a tenant. `presswork keys create --tenant NAME` makes its first key.

    Bytes may have a unit: bytes_stored=500GB, or 500GiB. Needs DATABASE_URL.
    """
    from services.core.tenants import tenants

    asked = _checked(TenantRequest, {"name": name, "weight": weight, "quotas": _limits(quota)})
    with database(profile.settings(), "tenants") as connection:
        made = tenants.create(connection, asked)
    _told(made, as_json, f"made the tenant {made.name}; `presswork keys create NAME --tenant {made.name}` makes a key")


def list_all(as_json: options.Json = False) -> None:
    """List the tenants, with their weights, states and quotas.

    Needs DATABASE_URL.
    """
    from services.core.tenants import tenants

    with database(profile.settings(), "tenants") as connection:
        found = tenants.listed(connection)
    for one in found if as_json else ():
        show.document(_document(one))
    if not as_json:
        show.render(tenant_tables.listed(found))


def set_(
    tenant: _Name,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Another name.", show_default=False)
    ] = None,
    weight: _Weight = None,
    quota: _Quotas = None,
    state: Annotated[
        Literal["active", "suspended"] | None,
        typer.Option(help="suspended: it takes no new work and nothing of it is rendered.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Change a tenant's name, weight, quotas or state. What is left out stays.

    A limit that is lowered refuses what is new, and nothing that is there. Needs DATABASE_URL.
    """
    from services.core.tenants import tenants

    given = {"name": name, "weight": weight, "state": state, "quotas": _limits(quota)}
    asked = _checked(TenantChanges, given)
    if not any(value is not None for value in given.values()):
        raise Usage("There is nothing to change: give --name, --weight, --quota or --state.")
    with database(profile.settings(), "tenants") as connection:
        changed = tenants.change(connection, tenants.find(connection, tenant).id, asked)
    _told(changed, as_json, f"changed the tenant {changed.name}")


def show_(tenant: _Name, as_json: options.Json = False) -> None:
    """Show a tenant, and what it uses of its quotas.

    Needs DATABASE_URL.
    """
    from services.core.tenants import tenants, usage

    with database(profile.settings(), "tenants") as connection:
        found = tenants.find(connection, tenant)
        used = usage.of_tenant(connection, found.id)
    if as_json:
        show.document({**_document(found), "usage": asdict(used)})
        return
    show.render(tenant_tables.one(found, used))


def _checked(model: type[B], given: dict[str, Any]) -> B:
    """Raises Usage with the sentence of the first thing that is wrong."""
    from pydantic import ValidationError

    from services.core.model import requests

    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise Usage(requests.problems(error, given, allowed=ALLOWED)[0].message) from None


def _limits(given: list[str] | None) -> dict[str, float | None] | None:
    if given is None:
        return None
    found: dict[str, float | None] = {}
    for text in given:
        name, equals, limit = text.partition("=")
        if not equals or name not in quotas.NAMES:
            raise Usage(f"--quota is {text[:60]!r}; it must be NAME=LIMIT, with a name of {', '.join(quotas.NAMES)}.")
        found[name] = None if limit == _NONE else _number(name, limit)
    return found


def _number(name: str, text: str) -> float:
    """Raises Usage, with a sentence that has the words of the command rather than those of the API."""
    is_size, (least, most) = name.startswith("bytes_"), quotas.RANGES[name]
    try:
        plain = re.sub("[,_]", "", text) if _GROUPED.fullmatch(text) else text  # "1,5" is not 15
        found = byte_sizes.parse(text) if is_size else int(plain) if name in quotas.WHOLE else float(plain)
        if not least <= found <= most:
            raise ValueError
    except ValueError:
        allowed = quotas.allowed(name, _NONE)
        if is_size:
            allowed = f"bytes, such as 500GB or 500GiB, up to {byte_sizes.exact(int(most))}, or {_NONE} for no limit"
        raise Usage(f"--quota {name} is {text[:40]!r}; it must be {allowed}.") from None
    return found


def _told(tenant: "Tenant", as_json: bool, sentence: str) -> None:
    if as_json:
        show.document(_document(tenant))
    else:
        show.say(sentence)


def _document(tenant: "Tenant") -> dict[str, Any]:
    from services.core.tenants import tenants

    return asdict(tenant) | {"id": tenants.public_id(tenant.id), "created_at": tenant.created_at.isoformat()}


_COMMANDS: dict[str, Callable[..., Any]] = {"create": create, "list": list_all, "set": set_, "show": show_}
for _command, _verb in _COMMANDS.items():
    app.command(_command)(guarded(_verb))
