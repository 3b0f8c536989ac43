"""A host with several devices: a worker for each, of which one dies alone."""

import os
import signal

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from tests.factories import submit
from tests.integration.test_worker_process import counts, mugs, wake_up
from tests.waiting import until


def ready(database: Database) -> list[tuple[str, str]]:
    """The device and the id of each worker that is up."""
    with database.begin_system() as connection:
        rows = connection.execute(
            text("SELECT device, id FROM workers WHERE state IN ('ready', 'busy') AND seen_at > now() - interval '2 s'")
        )
        return sorted((row.device, row.id) for row in rows)


@pytest.mark.chaos
def test_a_worker_runs_on_each_device_and_one_that_is_killed_comes_back_alone(start, database, settings):
    host = start(PRESSWORK_DEVICES="simulated:0-1", PRESSWORK_SIMULATED_BATCH_MS="200")
    (one, first), (other, _) = until(lambda: len(ready(database)) == 2 and ready(database))
    assert [one, other] == ["simulated:0 simulated", "simulated:1 simulated"]
    job_id = submit(database, settings, mugs(96))
    wake_up(settings)
    until(lambda: counts(database, job_id).get("done"), every=0.02)
    os.kill(max(host.children()), signal.SIGKILL)
    until(lambda: counts(database, job_id) == {"done": 96})
    back = until(lambda: len(now := ready(database)) == 2 and now)
    assert [device for device, _ in back] == [one, other]
    assert (one, first) in back  # the other one's worker is still the same process
    assert host.stop() == 0
    until(lambda: not ready(database))
