"""Crash points in the worker as it is installed: Celery, woken by Redis, and the child that it has forked."""

import hashlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from services.core import notify
from services.core.crash_points import VARIABLE
from services.core.db.database import Database
from services.core.jobs import queries
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests.factories import TENANT, submit
from tests.processes import Process
from tests.render_loops import mugs
from tests.waiting import until

pytestmark = pytest.mark.chaos
POINTS = {"claim.committed": "fenced", "image.stored": "fenced", "settle.committed": "ok"}
IMAGES = 8


@pytest.mark.parametrize("action", ["kill", "stop"])
@pytest.mark.parametrize("point", POINTS)
def test_what_a_child_of_celery_leaves_is_carried_on(
    start: Callable[..., Process], database: Database, settings: Settings, store: S3Store, point: str, action: str
) -> None:
    first = start(**{VARIABLE: f"{point}:{action}"})
    (child,) = first.children()
    job_id = submit(database, settings, mugs(IMAGES))
    assert notify.Notifier(settings.redis_url).notify_now("simulated", again=True)
    until(lambda: '"crash point"' in first.text())
    if action == "kill":
        until(lambda: '"child died"' in first.text())
        first.kill()  # or its next child would come to the point, too
    start(wait=False)
    until(lambda: _counts(database, job_id) == {"done": IMAGES}, 60)
    if action == "stop":
        os.kill(child, signal.SIGCONT)
        until(lambda: f'"verdict": "{POINTS[point]}"' in first.text())
        assert first.stop() == 0
    _assert_sound(database, store, job_id)


def _counts(database: Database, job_id: int) -> dict[str, int]:
    with database.begin(TENANT) as connection:
        found = queries.job(connection, TENANT, job_id)
    assert found is not None
    return {state: count for state, count in found.counts.items() if count}


def _assert_sound(database: Database, store: S3Store, job_id: int) -> None:
    """One result for each image, with the bytes that it names; no attempt was used."""
    with database.begin_system() as connection:
        results = _rows(connection, "SELECT index, object_key, sha256 FROM results WHERE job_id = :id", job_id)
        images = _rows(connection, "SELECT index, attempt FROM images WHERE job_id = :id", job_id)
    assert Counter(row.index for row in results) == dict.fromkeys(range(IMAGES), 1)
    assert {row.attempt for row in images} == {0}
    for row in results:
        assert hashlib.sha256(store.read(row.object_key)).digest() == bytes(row.sha256)


def _rows(connection: Any, statement: str, job_id: int) -> list[Any]:
    return list(connection.execute(text(statement), {"id": job_id}))
