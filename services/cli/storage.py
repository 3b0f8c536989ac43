"""`presswork storage`: compares the object store with the records, in the database itself."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import options, profile, show
from services.cli.exits import Exit, Interrupted, guarded
from services.cli.keys import acting, database

if TYPE_CHECKING:  # the other commands need no database
    from services.core.auditing.audits import Audit

app = typer.Typer(no_args_is_help=True, help="Compare the object store with the records.")
_LOOK_SECONDS = 1.0


def audit(
    share: Annotated[float, typer.Option(min=0, max=1, help="The share of images that is read and compared.")] = 0.001,
    accept_restore: Annotated[
        bool, typer.Option("--accept-restore", help="Database and store belong together after a restore.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return when it has begun.")] = False,
    as_json: options.Json = False,
) -> Exit:
    """Find missing and damaged images, and objects that no record names.

    The scheduler does it. Missing and damaged images are drawn again in a linked job; objects that no record names are
    deleted a week after they were first seen, and after a restore only once it was accepted. Needs DATABASE_URL.
    """
    from services.core.auditing import audits, mark
    from services.core.db.database import Database
    from services.core.storage.s3 import S3Store

    settings = profile.settings()
    if accept_restore:
        core = Database(settings.database_url, application="presswork storage", pool_size=1)
        try:
            with acting():
                refusal = mark.renew(core, S3Store(settings), accepts_restore=True)
        finally:
            core.close()
        show.say(f"still refused: {refusal}" if refusal else "accepted: database and store have a new mark")
    with database(settings, "storage_mark") as connection:
        found = audits.request(connection, share)
    try:
        while found.finished_at is None and not no_wait:
            show.say(f"{found.step}: {found.counts['records']:,} images, {found.counts['objects']:,} objects", "dim")
            time.sleep(_LOOK_SECONDS)
            with database(settings, "storage_mark") as connection:
                found = audits.show(connection, found.id)
    except KeyboardInterrupt:
        raise Interrupted("it goes on; `presswork storage show` shows how far it is") from None
    return _told(found, as_json)


def show_last(as_json: options.Json = False) -> Exit:
    """Show the last audit. Needs DATABASE_URL."""
    from services.core.auditing import audits

    with database(profile.settings(), "storage_mark") as connection:
        found = audits.show(connection)
    return _told(found, as_json)


def _told(found: "Audit", as_json: bool) -> Exit:
    counts = found.counts
    if as_json:
        moments = {name: str(at) if at else None for name, at in asdict(found).items() if name.endswith("_at")}
        show.document({**asdict(found), **moments})
    else:
        show.render(f"{found.step}, requested by {found.requested_by} at {found.requested_at:%Y-%m-%d %H:%M}")
        for name, number in counts.items():
            show.render(f"{name.replace('_', ' '):<16} {number:,}")
        if found.refusal:
            show.render(
                f"no object was deleted: {found.refusal}; `presswork storage audit --accept-restore` accepts it"
            )
    return Exit.INCOMPLETE if counts["missing"] + counts["damaged"] or found.refusal else Exit.OK


app.command("audit")(guarded(audit))
app.command("show")(guarded(show_last))
