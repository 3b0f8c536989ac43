"""Naive workers in the storm: they lose images and change bytes, so the storm can tell. With the one condition on
a PUT that they lack, the same workers keep every byte.

`STORM_SEED` repeats one storm, `RIVALS_REPORT` names a file for the figures.
"""

import dataclasses
import json
import os
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.storm import rivals, site
from tests.storm.plan import Plan
from tests.storm.rivals import CELERY, LEASES, Customer, Outcome, RivalFaults, RivalSite

SHARE = 0.05  # of the whole storm, for each of them
AT_FIRST, EACH = 200, 15  # images that are submitted before the first fault, and after each

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_celery_loses_images_and_changes_bytes(tmp_path: Path):
    found = weathered("celery", tmp_path, CELERY)

    assert found.lost > 0
    assert found.wrong > 0
    assert found.drawn_twice > 0


def test_leases_without_a_fence_change_bytes_of_images_that_were_done(tmp_path: Path):
    found = weathered("leases", tmp_path, LEASES)

    assert found.lost == 0
    assert found.wrong > 0
    assert found.drawn_twice > 0


def test_leases_whose_second_writer_adopts_the_first_ones_object_change_no_byte(tmp_path: Path):
    found = weathered("leases and If-None-Match", tmp_path, LEASES, NAIVE_CONDITIONAL="1")

    assert (found.lost, found.wrong) == (0, 0)
    assert found.drawn_twice > 0, "nobody was late"


def weathered(name: str, folder: Path, command: tuple[str, ...], **environ: str) -> Outcome:
    """What a storm has left of the images of these workers."""
    seed = int(os.environ.get("STORM_SEED", random.SystemRandom().randrange(2**32)))
    plan = Plan(seed, SHARE, ("fill the disk",) if site.unmountable() else ())
    print(f"{name}: seed {seed}, {plan.counts.total()} faults")
    chance, hit = random.Random(seed), Counter[str]()
    with site.small_disk(folder / "disk") as disk:
        struck = RivalSite(folder, disk, command, **environ)
        try:
            faults, customer = RivalFaults(struck, chance), Customer(struck, celery=command is CELERY)
            customer.submit(AT_FIRST)
            began = time.monotonic()
            for kind in plan.faults:
                time.sleep(chance.uniform(0.0, 1.5))
                assert site.eventually(partial(faults.strike, kind), 120), f"no chance to {kind}"
                hit[kind] += 1
                customer.submit(EACH)
            stops = Counter(stop.result() for stop in faults.stops)
            struck.heal()
            customer.wait(300)
            seconds = round(time.monotonic() - began)
            found = rivals.look(struck)
        finally:
            struck.end()
    report = {"seconds": seconds, "faults": dict(hit), "stops": dict(stops), **dataclasses.asdict(found)}
    print(name, report)
    if path := os.environ.get("RIVALS_REPORT"):
        add(Path(path), name, {"seed": seed, **report})
    assert hit == plan.counts
    assert stops["too late"] > 0
    return found


def add(file: Path, name: str, report: dict[str, object]) -> None:
    """Puts one rival's figures beside those of the others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, name: report}, indent=1))
