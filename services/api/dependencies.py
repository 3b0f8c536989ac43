"""What every handler depends on: the settings, the database, the object store, the notifier, and slots to run in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from services.api import addresses
from services.api.feed import Feed
from services.api.guesses import Guesses
from services.api.slots import Slots
from services.core.db.database import Database
from services.core.jobs import inputs
from services.core.notify import Notifier
from services.core.policy import refusals
from services.core.settings import Settings
from services.core.storage import signed_urls
from services.core.storage.s3 import S3Store
from services.core.tenants.rate_limits import RateLimits

# How many calls run at one time, each in a thread and most with a connection to the database.
REQUESTS_AT_ONCE = 8
SUBMISSIONS_AT_ONCE = 4  # parsing is bound by the CPU: more at once would only use more memory
TRANSFERS_AT_ONCE = 4  # between the object store and clients
POLLS_AT_ONCE = 4  # for clients that wait for images
WATCHERS = 1_500  # streams of events
CONNECTIONS = 12  # and as many more under load: some are left for keys and for health


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    database: Database
    store: S3Store
    notifier: Notifier
    requests: Slots
    submissions: Slots
    transfers: Slots
    polls: Slots
    feed: Feed
    rates: RateLimits
    guesses: Guesses

    @classmethod
    def open(cls, settings: Settings) -> "Context":
        database = Database(settings.database_url, application="presswork web", pool_size=CONNECTIONS)
        return cls(
            settings,
            database,
            S3Store(settings),
            Notifier(settings.redis_url),
            Slots(REQUESTS_AT_ONCE),
            Slots(SUBMISSIONS_AT_ONCE),
            Slots(TRANSFERS_AT_ONCE),
            Slots(POLLS_AT_ONCE),
            Feed(database, WATCHERS),
            RateLimits(settings.redis_url),
            Guesses(),
        )


async def _context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


def base_url(settings: Settings, request: Request) -> str:
    """The address in front of `/v1`: see `addresses.base_url`."""
    return addresses.base_url(settings, request.scope)


def client(request: Request) -> str:
    """The address that a request came from, as far as it is known."""
    return request.client.host if request.client else ""


def location(context: "Context", request: Request, path: str) -> dict[str, str]:
    """The header that says where to look after what was accepted. `path` begins with `/v1/`."""
    return {"Location": base_url(context.settings, request) + path}


def linker(context: "Context", request: Request, job_id: int) -> Callable[[int], str]:
    """A function from an image's index to its signed URL."""
    base = base_url(context.settings, request)
    return lambda index: signed_urls.image_url(base, context.settings.secret, job_id, index)


def pictures(context: Context, tenant: int) -> inputs.Inputs:
    """The input pictures of one submission of that tenant."""
    return inputs.Inputs(context.settings, lambda: context.database.read(tenant), context.store, tenant)


def door(context: Context, tenant: int, name: refusals.Name) -> refusals.Door:
    """A way in that refuses a submission as a whole."""
    return refusals.Door(name, tenant, lambda: context.database.begin(tenant))


ContextDep = Annotated[Context, Depends(_context)]
