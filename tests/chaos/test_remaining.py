"""Two minutes of a run with simulated pictures: what is said of the time that is left, against what it then was."""

import time

import pytest

from services.core.jobs import queries, remaining
from tests.factories import TENANT, submit

IMAGES = 2_000


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_after_a_minute_the_time_that_is_left_is_never_off_by_more_than_half(database, settings, start):
    for _ in range(2):
        start(PRESSWORK_SIMULATED_BATCH_MS="1500")
    job_id = submit(database, settings, IMAGES, model="simulated", size="64x64")
    began, said = time.monotonic(), []
    while True:
        with database.begin_system() as connection:
            view = queries.job(connection, TENANT, job_id)
            view = remaining.estimated(connection, [view])[0]
        now = time.monotonic()
        if view.counts["done"] == IMAGES:
            break
        if now - began > 60:
            said.append((now, view.eta_seconds))
        time.sleep(0.5)
    assert len(said) > 30
    ends = time.monotonic()
    wrong = [(at - began, eta, ends - at) for at, eta in said if ends - at > 5 and not 0.5 < eta / (ends - at) < 2]
    assert not wrong
