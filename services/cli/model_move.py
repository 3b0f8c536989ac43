"""`presswork model move`: what waits for one revision of a model is drawn by another, in the database itself."""

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import options, profile, show
from services.cli.exits import Exit, Interrupted, Usage
from services.cli.keys import acting
from services.core.settings import Settings

if TYPE_CHECKING:  # the other commands need no database
    from services.core.db.database import Database
    from services.core.queue.model_moves import Moved, Target


def move(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The revision that jobs wait for.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="A model's name, or its newest revision.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many jobs wait.")] = False,
    as_json: options.Json = False,
) -> Exit:
    """Let images that wait for one revision of a model be drawn by another.

    For a roll-out: start workers of the new revision beside the old ones, move what waits, and stop the old ones when
    nothing is being rendered by them. Drafts are moved, too. Images that are done or being rendered stay as they are.
    What the new revision cannot draw (a size, steps, a reproducibility class that was asked for) stays too, and is
    counted. It can be interrupted and called again. Needs DATABASE_URL.
    """
    from services.core.db.database import Database

    settings = profile.settings()
    with closing(Database(settings.database_url, application="presswork model", pool_size=1)) as core, acting():
        target = _target(core, old, new)
        try:
            found = _move(core, settings, old, target, dry_run=dry_run)
        except KeyboardInterrupt:
            raise Interrupted("what was moved stays moved; call it again for the rest") from None
    if as_json:
        show.document({"from": old, "to": target.revision, **found})
    else:
        verb = "would be moved" if dry_run else "moved"
        images = "" if dry_run else f", {found['images']:,} images"
        show.render(f"{found['jobs']:,} jobs {verb} to {target.revision}{images}")
        if found["left"]:
            show.render(f"{found['left']:,} parts of jobs stay: {target.name} may not or cannot draw them")
        if found["rendering"]:
            show.render(f"{found['rendering']:,} images are being rendered by the old revision")
    return Exit.INCOMPLETE if found["left"] else Exit.OK


def _target(core: "Database", old: str, new: str) -> "Target":
    from services.core.queue import model_moves

    with core.begin_system() as connection:
        target = model_moves.target(connection, new)
        known = model_moves.waiting(connection)
    if target is None:
        raise Usage(f"No worker has served a model or revision {new[:80]!r} as its newest; start one first.")
    if target.revision == old:
        raise Usage(f"{new} is the revision {old} already.")
    if old not in known:
        others = ", ".join(f"{name} ({jobs:,} jobs)" for name, jobs in known.items() if name != target.revision)
        raise Usage(f"Nothing waits for the revision {old[:80]!r}. " + (f"Jobs wait for {others}." if others else ""))
    return target


def _move(core: "Database", settings: Settings, old: str, target: "Target", *, dry_run: bool) -> dict[str, int]:
    from services.core.queue import model_moves

    found = {"jobs": 0, "images": 0, "left": 0, "rendering": 0}
    after = 0
    while True:
        with core.begin_system() as connection:
            jobs = model_moves.jobs(connection, old, after)
            found["rendering"] = model_moves.rendering(connection, old)
        if not jobs:
            return found
        after = jobs[-1][0]
        for job_id, tenant_id in jobs:
            moved = None if dry_run else _move_job(core, settings, old, target, tenant_id, job_id)
            found["jobs"] += moved is None or not moved.left
            found["images"] += 0 if moved is None else moved.images
            found["left"] += 0 if moved is None else moved.left
        show.say(f"{found['jobs']:,} jobs, {found['images']:,} images", "dim")


def _move_job(core: "Database", settings: Settings, old: str, target: "Target", tenant_id: int, job_id: int) -> "Moved":
    """All of the job, some images a transaction."""
    from services.core.policy import policies
    from services.core.queue import model_moves

    images = 0
    while True:
        with core.begin_system() as connection:
            policy = policies.of_tenant(settings, connection, tenant_id)
            moved = model_moves.move(connection, tenant_id, job_id, old, target, policy=policy)
        images += moved.images
        if moved.refusal is not None:
            show.say(moved.refusal, "yellow")
        if moved.is_all:
            return replace(moved, images=images)
