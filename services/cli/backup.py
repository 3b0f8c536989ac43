"""`presswork backup`: compares a restored database with the object store, in the database itself."""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import options, profile, show
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.keys import acting

if TYPE_CHECKING:  # the other commands need no database
    from services.core.auditing.audits import Audit

app = typer.Typer(no_args_is_help=True, help="Compare a restored database with the object store.")
_SHOWN = 20


def check(
    share: Annotated[float, typer.Option(min=0, max=1, help="The share of images that is read and compared.")] = 0.01,
    extra: Annotated[
        Path | None,
        typer.Option("--extra", metavar="FILE", help="Write the keys of extra objects.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> Exit:
    """Compare the database with the object store, after a restore or to try one.

    Images whose objects are missing or damaged are drawn again in jobs linked to theirs, exports are written again, and
    a catalogue's pictures copied again from their images; of anything else it says what to do. Objects that no record
    names are listed, and nothing is deleted. It needs no other program to run. Needs DATABASE_URL and the store's key.
    """
    from services.core.backups import archive, comparing, findings, other_objects, remedies
    from services.core.db.database import Database
    from services.core.storage import installation
    from services.core.storage.s3 import S3Store

    if extra is not None and not extra.parent.is_dir():
        raise Usage(f"--extra: there is no folder {str(extra.parent)!r}.")
    settings = profile.settings()
    store = S3Store(settings)
    with closing(Database(settings.database_url, application="presswork backup", pool_size=3)) as core, acting():
        installation.recognize(core, store)  # all images would be missing in another bucket, and drawn again
        try:
            audit = comparing.run(settings, core, store, f"cli/{socket.gethostname()}", share=share, say=_Progress())
            show.say("files, exports, data sets and catalogues", "dim")
            others = remedies.losses(core, store, other_objects.missing(core, store))
        except KeyboardInterrupt:
            raise Interrupted("what it has found is kept; run it again, or a scheduler goes on with it") from None
        with core.begin_system() as connection:
            lost = findings.lost(connection, audit.id)
            unfinished = findings.open_jobs(connection)
            log = archive.state(connection)
            known = _list(findings.extra_objects(connection, audit.id), extra)
    found = {
        "id": audit.id, "restored": audit.refusal, **audit.counts, "missing_objects": [asdict(one) for one in others],
        "lost": [asdict(one) for one in lost], "extra": known, "unfinished_jobs": unfinished, "log": log.sentence,
    }  # fmt: skip
    if as_json:
        show.document(found)
    else:
        _tell(found, extra)
    is_whole = not (lost or others or audit.counts["orphans"])
    return Exit.OK if is_whole else Exit.INCOMPLETE


class _Progress:
    """A line whenever something has changed."""

    def __init__(self) -> None:
        self._said = ""

    def __call__(self, audit: "Audit") -> None:
        counts = audit.counts
        line = f"{audit.step}: {counts['records']:,} images, {counts['objects']:,} objects"
        if line != self._said and audit.finished_at is None:
            show.say(line, "dim")
            self._said = line


def _list(keys: Iterator[str], to: Path | None) -> list[str]:
    """The first keys; all of them go to the file."""
    first: list[str] = []
    file = None if to is None else to.open("w", encoding="utf-8")
    try:
        for key in keys:
            if file is not None:
                file.write(key + "\n")
            if len(first) < _SHOWN:
                first.append(key)
            elif file is None:
                break
    finally:
        if file is not None:
            file.close()
    return first


def _tell(found: dict[str, Any], extra: Path | None) -> None:
    show.render(f"{found['records']:,} images and {found['objects']:,} objects compared, {found['sampled']:,} read")
    for one in found["lost"]:
        broken = f"{one['job']}: {one['missing']:,} missing, {one['damaged']:,} damaged"
        show.render(f"{broken}; " + (f"drawn again in {one['drawn_in']}" if one["drawn_in"] else "not drawn again"))
    for other in found["missing_objects"]:
        lacks = f"{other['thing']} of {other['tenant']}: {len(other['keys']):,} objects missing"
        show.render(f"{lacks}; {other['made_again'] or other['todo']}")
    if found["orphans"]:
        show.render(f"{found['orphans']:,} objects that no record names" + (f", listed in {extra}" if extra else ":"))
        for key in found["extra"] if extra is None else ():
            show.render(f"  {key}")
        if extra is None and found["orphans"] > len(found["extra"]):
            show.render("  ... `--extra FILE` lists all")
    if found["unfinished_jobs"]:
        show.render(f"{found['unfinished_jobs']:,} jobs have not ended: their images are compared once they have")
    if found["restored"]:
        show.render(
            f"{found['restored']}; nothing is deleted until `presswork storage audit --accept-restore` accepts it"
        )
    show.render(found["log"])
    if not (found["lost"] or found["missing_objects"] or found["orphans"]):
        show.render("database and store agree")


app.command("check")(guarded(check))
