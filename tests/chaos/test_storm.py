"""Everything that can fail does, again and again, while tens of thousands of images are rendered: none is lost, none is
visible twice, none has wrong bytes.

`STORM` is the share of the whole storm (1), `STORM_SEED` repeats one, `STORM_REPORT` names a file for its figures.
"""

import dataclasses
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from services.core.db.database import Database
from services.core.model.tenant_requests import TenantRequest
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys, tenants
from tests.storm import checks, site
from tests.storm.clients import SPECS, Reader, Submitter, requests, spec
from tests.storm.faults import Faults
from tests.storm.plan import Plan
from tests.storm.site import Site
from tests.waiting import until

ENOUGH = 300  # images that wait, or more are submitted
TENANTS, JOBS = 3, 2

pytestmark = pytest.mark.chaos


@pytest.fixture
def plan() -> Plan:
    seed = int(os.environ.get("STORM_SEED", random.SystemRandom().randrange(2**32)))
    left_out = ("fill the disk",) if site.unmountable() else ()
    plan = Plan(seed, float(os.environ.get("STORM", "1")), left_out)
    print(f"seed {seed}: {plan.images:,} images, {plan.counts.total():,} faults")
    if left_out:
        print(f"NO DISK IS FILLED: {site.unmountable()}")
    return plan


@pytest.fixture
def struck(tmp_path: Path, plan: Plan) -> Iterator[Site]:
    with site.small_disk(tmp_path / "disk") as disk:
        struck = Site(tmp_path, disk)
        yield struck
        struck.end()


@pytest.mark.timeout(7200)
def test_the_storm_loses_nothing_shows_nothing_twice_and_changes_no_byte(struck: Site, plan: Plan):
    chance = random.Random(plan.seed)
    settings = Settings.read({name: value for name, value in struck.values.items() if name != "PRESSWORK_URL"})
    database = Database(settings.database_url, application="tests", pool_size=4)
    teams = submitters(database, settings, struck.values["PRESSWORK_URL"])
    jobs: dict[str, int] = {}
    owners: list[tuple[Submitter, str]] = []

    def submit(team: Submitter, images: int, **head: str) -> None:
        job = team.submit(requests(images), **head)
        jobs[job] = images
        owners.append((team, job))

    for number in range(TENANTS * JOBS):
        submit(teams[number % TENANTS], plan.images // (TENANTS * JOBS), store="shards" if number == 0 else "objects")
    faults, hit, times, numbers = Faults(struck, chance), Counter[str](), [], count()

    def strike(kind: str) -> bool:
        """There is always work when something fails."""
        if reader.has_fewer(ENOUGH):
            submit(teams[next(numbers) % TENANTS], ENOUGH)
            reader.jobs = list(owners)
        return faults.strike(kind)

    began = time.monotonic()
    with Reader(owners) as reader:
        for number, kind in enumerate(plan.faults):
            pace(reader, number * plan.images * 0.9 / plan.counts.total(), chance)
            assert site.eventually(partial(strike, kind), 120), f"no chance to {kind}"
            hit[kind] += 1
            times.append((round(time.monotonic() - began, 1), kind))
            if number % 100 == 99:
                print(f"{times[-1][0]:.0f} s: {number + 1:,} faults, {reader.done:,} images done", flush=True)
        stops = Counter(stop.result() for stop in faults.stops)
        struck.heal()
        until(lambda: reader.has_fewer(1), seconds=600)
        seconds = time.monotonic() - began
        reference = teams[0].submit([spec(number) for number in range(SPECS)])
        until(lambda: teams[0].job(reference)["finished_at"], seconds=300)
    found = checks.look(database, S3Store(settings), jobs, reference)
    database.close()
    fenced = site.fenced(struck.log())
    report = {
        "seed": plan.seed, "share": plan.share, "seconds": round(seconds), "jobs": len(jobs), "faults": dict(hit),
        "stops": dict(stops), "fenced": fenced, "reads": reader.reads, "wrong_reads": len(reader.bad),
        "requests": sum(team.tries for team in teams), **dataclasses.asdict(found),
        "timeline": reader.timeline[:: max(1, len(reader.timeline) // 400)], "times": times,
    }  # fmt: skip
    print({name: value for name, value in report.items() if name not in ("timeline", "times")})
    if path := os.environ.get("STORM_REPORT"):
        Path(path).write_text(json.dumps(report))

    assert hit == plan.counts
    assert fenced >= plan.fenced, "a stopped child that goes on settles too late"
    assert not reader.bad
    assert (found.lost, found.twice, found.wrong, found.failed) == (0, 0, 0, 0)
    assert 0 < found.in_shards < found.images


def submitters(database: Database, settings: Settings, url: str) -> list[Submitter]:
    """Of as many tenants."""
    with database.begin_system() as connection:
        made = [tenants.create(connection, TenantRequest(name=f"team-{number}")).id for number in range(TENANTS)]
        return [Submitter(url, api_keys.issue_key(connection, settings.secret, one, "storm")) for one in made]


def pace(reader: Reader, done: float, chance: random.Random) -> None:
    """Spreads the faults over the work, with a time limit for each."""
    deadline = time.monotonic() + 2.0
    time.sleep(chance.uniform(0.0, 0.2))
    while reader.done < done and time.monotonic() < deadline:
        time.sleep(0.02)
