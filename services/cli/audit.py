"""`presswork audit`: the audit trail as a file, and whether such files are what was exported."""

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from services.cli import audit_checking, follow, options, show, units
from services.cli.audit_known import Known
from services.cli.exits import Exit, Interrupted, Usage, guarded
from services.cli.profile import connect
from services.core.model import audit_chain, job_words

app = typer.Typer(no_args_is_help=True, help="Export the audit trail, and verify what was exported.")
_Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="WHEN", help="From 12h or 30d ago on, a day (UTC) or a moment.", show_default=False
    ),
]
_Until = Annotated[
    str | None,
    typer.Option("--until", metavar="WHEN", help="Until then; a day is included.", show_default=False),
]


def export(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="FILE.jsonl or FILE.jsonl.gz; - is stdout."),
    ],
    since: _Since = None,
    until: _Until = None,
    actor: Annotated[
        str | None, typer.Option(metavar="ACTOR", help="Of one actor: key/ID, cli/USER, scheduler.", show_default=False)
    ] = None,
    event: Annotated[
        str | None, typer.Option(metavar="EVENT", help="Of one kind: key.revoked, ...", show_default=False)
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            "--tenant",
            metavar="NAME",
            help="Another tenant's; '*' is everybody's. For the operator's administrators.",
            show_default=False,
        ),
    ] = None,
    profile: options.ProfileName = None,
) -> Exit:
    """Write the audit trail to a file, one JSON object a line, the oldest first.

    Each line has the sha256 over the hash before it and itself, and the last line says how many there are. Keep the
    file, or the hash that is printed, where no program of Presswork can write: a later export then shows whether the
    trail was changed in between. Lines come in sealed ranges, so some may be from just before or after. Exit code 3: a
    part of the trail in the database no longer is what was sealed. Needs a key with the scope admin.
    """
    asked: dict[str, Any] = {"actor": actor, "event": event, "tenant": tenant}
    asked |= {"since": _moment(since, "--since", is_end=False), "until": _moment(until, "--until", is_end=True)}
    heading = audit_chain.heading(is_filtered=(actor, event) != (None, None), until=asked["until"], tenant=tenant)
    summary = audit_chain.Summary()
    with connect(profile) as client, _written(output) as file, follow.bar() as progress:
        task = progress.add_task("exporting", total=None, tail="")
        file.write(audit_chain.canonical(heading) + b"\n")
        for line in client.audit(**asked):
            if "chains" in line:
                summary.end(line["chains"])
                continue
            summary.add(line)
            file.write(audit_chain.canonical(line) + b"\n")
            progress.advance(task)
        file.write(audit_chain.canonical(summary.line()) + b"\n")
    show.say(units.count(summary.records, "record"))
    for tenant_id, last in summary.line()["last"].items():
        show.say(f"{tenant_id}: record {last['n']:,} has the hash {last['hash']}")
    if summary.faults:
        show.say(f"{units.count(summary.faults, 'range')} of the trail no longer as it was sealed; see the file")
        return Exit.INCOMPLETE
    return Exit.OK


def verify(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Exports, the oldest first; .gz too.", show_default=False),
    ],
    as_json: options.Json = False,
) -> Exit:
    """Say whether exported files are what was exported, and whether they agree with one another.

    Names the first line of each that was changed, dropped or inserted. Of two exports that overlap the later one shows
    whether the trail was changed, or its end cut off, in between. Needs no server. Exit code 1: something is not as
    it was.
    """
    with Known() as known:
        return _verify(files, known, as_json=as_json)


def _verify(files: list[Path], known: Known, *, as_json: bool) -> Exit:
    sound = True
    for number, path in enumerate(files, 1):
        with follow.bar() as progress:
            task = progress.add_task(f"verifying {path.name}", total=None, tail="")
            found = audit_checking.check(
                path,
                known,
                lambda lines, task=task: progress.advance(task, lines),  # type: ignore[misc]
                keeps=number < len(files),
            )
        sound = sound and found.trouble is None
        if as_json:
            show.document(found.document())
        elif found.trouble is None:
            rest = "; those between them were left out, and cannot be checked" if found.is_filtered else ""
            show.render(f"{path}: {units.count(found.records, 'record')}, unchanged{rest}")
            for tenant, (place, hashed) in found.last.items():
                show.render(f"  {tenant}: record {place:,} has the hash {hashed}")
        else:
            show.render(f"{path}: line {found.line:,}: {found.trouble}")
    return Exit.OK if sound else Exit.FAILED


@contextmanager
def _written(output: Path) -> Iterator[IO[bytes] | Any]:
    """The file, which is there only once it is whole."""
    if str(output) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = output.with_name(f".{output.name}.part")
    try:
        with gzip.open(unfinished, "wb") if output.suffix == ".gz" else unfinished.open("wb") as file:
            yield file
        unfinished.replace(output)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {output} is as it was") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _moment(given: str | None, option: str, *, is_end: bool) -> str | None:
    try:
        return None if given is None else job_words.moment(given, is_end=is_end).isoformat()
    except ValueError:
        raise Usage(f"{option} is {given!r}; it must be {job_words.WHEN}.") from None


app.command("export")(guarded(export))
app.command("verify")(guarded(verify))
