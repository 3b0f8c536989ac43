"""`presswork tenants delete`: deletes a tenant with all that belongs to it, and waits until nothing is left."""

import time
from typing import Annotated

import typer

from presswork_client import TenantDeletion
from services.cli import options, show, units
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.profile import connect

_LOOK_SECONDS = 1.0
_KINDS = {"images": "image", "objects": "other object", "rows": "other row"}


def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tenant's name.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for the name again.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return when it has begun.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Delete a tenant: keys, jobs, images, files, catalogues, datasets, events.

    Its keys are revoked at once; the rest goes in the background, also after Ctrl-C. The same command again shows how
    far it is. Nothing can be restored. Needs an admin's key of the operator's tenant.
    """
    if not yes:
        show.say(f"all of the tenant {name} will be deleted: jobs, images, files, catalogues, datasets, keys")
        if typer.prompt("its name, to go on", err=True) != name:
            raise Usage("That is another name; nothing was deleted.")
    with connect(profile) as client:
        found = client.delete_tenant(name)
        try:
            said = ""
            while found["finished_at"] is None and not no_wait:
                if said != _far(found):
                    said = _far(found)
                    show.say(said, style="dim")
                time.sleep(_LOOK_SECONDS)
                found = client.tenant_deletion(name)
        except KeyboardInterrupt:
            raise Interrupted(f"it goes on; `presswork tenants delete {name} --yes` shows how far it is") from None
    if as_json:
        show.document(found)
    elif found["finished_at"] is None:
        show.render(f"{name} is being deleted")
    else:
        show.render(f"{_far(found)}; what remains: {found['remains'] or 'nothing'}")
    return Exit.REFUSED if found["remains"] else Exit.OK


def _far(found: TenantDeletion) -> str:
    """What is left and what is gone. The rows of its jobs are not counted."""
    left = f"{units.count(found['jobs_left'], 'job')} left; " if found["jobs_left"] else ""
    gone = (units.count(found[name], noun) for name, noun in _KINDS.items())  # type: ignore[literal-required]
    return f"{left}deleted {', '.join(gone)}"


def add_to(app: typer.Typer) -> None:
    app.command("delete")(guarded(delete))
