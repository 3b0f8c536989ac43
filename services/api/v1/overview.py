"""How it all goes: what needs a person, what waits, how fast images are finished, and the newest of them."""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from services.api import dependencies, parameters
from services.api.authentication import Caller, Tenant
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.api.v1 import failures, schemas
from services.api.v1.jobs import described
from services.api.v1.schemas import Moment
from services.core.jobs import overview, rates
from services.core.model import ids
from services.core.model.scopes import Principal

if TYPE_CHECKING:
    from services.api.readiness import Readiness

router = APIRouter(route_class=TenantRoute)


class Rates(BaseModel):
    """Images done or failed per second: in the last one to two minutes, and over the last hour, day and week."""

    now: float
    hour: float
    day: float
    week: float


class RatePoint(BaseModel):
    """What was finished in the minute or hour that began at `at`. `rate`: images done or failed per second, of the time
    that has passed of it. `reused` of the done images were copied.
    `device_seconds`: how long accelerators were at it. `batch_fill`: the share of their batches that held images; null
    if there was no batch."""

    at: Moment
    done: int
    failed: int
    rate: float
    reused: int
    device_seconds: float
    batch_fill: float | None


class RateSeries(BaseModel):
    """`data` begins with the oldest minute or hour and ends with the current one."""

    rates: Rates
    data: list[RatePoint]


class Issue(BaseModel):
    """Something that needs a person. `failing`: nothing can be submitted or rendered; `degraded`: some of it cannot."""

    code: str
    status: Literal["degraded", "failing"]
    message: str


class Waiting(BaseModel):
    """The images that are not final, without those of paused jobs (of which `paused` wait), and what they take: seconds
    of accelerators, and seconds until all are done if nothing else is ahead. Null: not measured yet, or no live worker
    serves some of them. `more`: there are other jobs, which were not added up."""

    jobs: int
    queued: int
    rendering: int
    paused: int
    device_seconds: float | None
    seconds: float | None
    more: bool


class Accelerators(BaseModel):
    """Live workers, each with one accelerator, for all tenants together. A drained one takes nothing new."""

    busy: int
    idle: int
    drained: int
    sick: int
    starting: int


class NewestPicture(BaseModel):
    """A done image; `url` needs no key. `prompt` is its beginning."""

    job_id: str
    index: int
    finished_at: Moment
    flagged: bool | None
    custom_id: str | None
    prompt: str
    url: str


class Overview(BaseModel):
    """`status` is the worst of the issues. `jobs` are the newest ones under way, those in progress first, `failures`
    the causes of the last day, `pictures` the newest ones."""

    object: Literal["overview"] = "overview"
    status: Literal["ok", "degraded", "failing"]
    issues: list[Issue]
    rates: Rates
    waiting: Waiting
    accelerators: Accelerators
    jobs: list[schemas.Job]
    failures: list[failures.FailureCause]
    pictures: list[NewestPicture]


@router.get("/overview", response_model=Overview)
async def show_overview(request: Request, context: ContextDep, tenant: Tenant, caller: Caller) -> Any:
    """Whether all is well and why not, what waits, who renders it, how fast, what fails, and the newest pictures."""
    servers = await of_servers(request)
    try:
        return await context.requests.run(tenant, partial(_overview, request, context, caller, servers))
    except Exception:
        if (trouble := database_trouble(servers)) is not None:
            raise ApiError(503, "database_unusable", trouble.message) from None
        raise


async def of_servers(request: Request) -> list[Issue]:
    """What is wrong with the servers that Presswork needs. Of workers the overview itself says more."""
    readiness: Readiness = request.app.state.readiness
    return [
        Issue(code=name, status=check.status, message=check.message)
        for name, check in (await readiness.answer()).checks.items()
        if check.status != "ok" and name != "worker"
    ]


def database_trouble(issues: list[Issue]) -> Issue | None:
    """Why the database cannot be used, if so: a schema that is behind may lack what the overview is read from."""
    return next((issue for issue in issues if (issue.code, issue.status) == ("database", "failing")), None)


def together(servers: list[Issue], found: overview.Overview) -> list[Issue]:
    """All that needs a person, the worst first."""
    issues = [*servers, *(Issue(**asdict(issue)) for issue in found.issues)]
    return sorted(issues, key=lambda issue: issue.status != "failing")


def _overview(request: Request, context: Context, caller: Principal, servers: list[Issue]) -> Overview:
    tenant, names_hosts = caller.tenant_id, caller.sees_hosts
    with context.database.read(tenant) as connection:
        found = overview.overview(connection, tenant, names_hosts=names_hosts)
    issues = together(servers, found)
    return Overview(
        status=issues[0].status if issues else "ok",
        issues=issues,
        rates=shown(found.rates),
        waiting=Waiting(**asdict(found.waiting)),
        accelerators=Accelerators(**asdict(found.accelerators)),
        jobs=described(context, list(found.jobs)),
        failures=[failures.shown(cause) for cause in found.failures],
        pictures=[_picture(request, context, picture) for picture in found.pictures],
    )


@router.get("/rates", response_model=RateSeries)
def show_rates(
    context: ContextDep, tenant: Tenant, by: parameters.Grain = "minute", points: parameters.Points = 60
) -> Any:
    """How fast the tenant's images were finished, by minute (kept for two days) or by hour (kept for two years)."""
    with context.database.read(tenant) as connection:
        found, series = rates.rates(connection, tenant), rates.series(connection, tenant, by, points)
    return RateSeries(rates=shown(found), data=[_point(point) for point in series])


def shown(found: rates.Rates) -> Rates:
    return Rates(**{name: round(rate, 6) for name, rate in asdict(found).items()})


def _picture(request: Request, context: Context, picture: overview.Picture) -> NewestPicture:
    link = dependencies.linker(context, request, picture.job_id)
    named = asdict(picture) | {"job_id": ids.public_job(picture.job_id)}
    return NewestPicture(**named, url=link(picture.index))


def _point(point: rates.Point) -> RatePoint:
    return RatePoint(
        at=point.at,
        done=point.done,
        failed=point.failed,
        rate=round(point.rate, 6),
        reused=point.reused,
        device_seconds=round(point.device_seconds, 3),
        batch_fill=round((point.done - point.reused) / point.slots, 3) if point.slots else None,
    )
