"""The rows of a file as they are submitted: with custom_ids made valid, and without bad rows, as the options say."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from presswork_client import Client
from services.cli import show
from services.cli.checking import Checker
from services.cli.exits import BadInput
from services.cli.pictures import Pictures
from services.cli.rejects import Rejects
from services.core.items.custom_ids import Fixes
from services.core.items.reading import Row, Source


@contextmanager
def screened(
    client: Client,
    source: Source,
    *,
    fix_ids: bool,
    skip_bad: Path | None,
    replace: bool,
    pictures: Pictures | None = None,
) -> Iterator[Iterable[Row]]:
    """Gives the rows. Afterwards says how the file was read, what was changed and what was skipped."""
    fixes = Fixes(source.unit) if fix_ids else None
    read = source.rows() if pictures is None else pictures.rows(source.rows())
    rows = read if fixes is None else fixes.rows(read)
    try:
        if skip_bad is None:
            yield rows
        else:
            with Rejects(skip_bad, source, replace=replace) as rejects:
                yield from _without_bad(client, source, rows, rejects)
    finally:
        if source.how:
            show.say(source.described, style="dim")
        if fixes is not None and source.taken:
            show.say(fixes.sentence, style="dim")


def _without_bad(client: Client, source: Source, rows: Iterable[Row], rejects: Rejects) -> Iterator[Iterable[Row]]:
    source.keeps_cells = True
    try:
        yield rejects.good(rows, Checker(source, client))
    except BadInput:
        if rejects.count and rejects.count == source.taken:
            rejects.keep()
            raise BadInput("All rows are bad; nothing was submitted.", []) from None
        raise
    rejects.keep()
