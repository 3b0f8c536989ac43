"""What the shell's completion offers that only a server knows. If anything goes wrong, it offers and says nothing."""

import io
from contextlib import redirect_stderr, suppress
from itertools import islice

import typer

from presswork_client import Client, ClientError
from services.cli import profile, show
from services.core.model.errors import PressworkError

_NEWEST = 50
_SECONDS = 2.0


def job_ids(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest jobs whose id begins so, each with its state."""
    with suppress(ClientError, PressworkError, OSError), redirect_stderr(io.StringIO()):
        found = profile.find(ctx.params.get("profile"))
        with Client(found.url, found.api_key, timeout=_SECONDS, patience=0.0) as client:
            jobs = islice(client.jobs(page=_NEWEST), _NEWEST)
            return [(job["id"], show.in_short(job)) for job in jobs if job["id"].startswith(incomplete)]
    return []
