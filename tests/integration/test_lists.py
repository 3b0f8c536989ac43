"""What a page of a list reads: as many rows as it shows, times a constant, however large the table is."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, text

from services.core.batches import batch_jobs
from services.core.db.database import Connection, Database
from services.core.events import actions
from services.core.events import queries as events
from services.core.files import files
from services.core.jobs import image_pages, queries, request_queries, resubmission, scored
from services.core.model import scores
from services.core.model.states import ImageState
from services.core.webhooks import deliveries, endpoints
from services.local.stack import Stack
from tests import factories

TENANT = factories.TENANT
SHOWN = 5
LARGE, SMALL = 20_000, 2 * SHOWN
FEW = 60  # rows of small tables: segments, the tenant's job and so on
_LAST = 2**62


def _fill(connection: Connection) -> None:
    """Job 1 is done but for its last images, of which some are in each other state; job 2 is cancelled but for its last
    ones, which are done. There are as many jobs, files and events."""
    connection.execute(
        text("""
        INSERT INTO jobs (id, tenant_id, state, priority, total, requests, finished_at)
        VALUES (1, :tenant, 'in_progress', 1, :n, :n, NULL), (2, :tenant, 'cancelled', 1, :n, :n, now())
        """),
        {"tenant": TENANT, "n": LARGE},
    )
    statements = """
    INSERT INTO counters (job_id, queued, rendering, done, failed, cancelled)
      VALUES (1, :few, :few, :n - 4 * :few, :few, :few), (2, 0, 0, :few, 0, :n - :few);
    INSERT INTO segments (job_id, id, tenant_id, model_revision, width, height, steps, guided, priority, open, low,
                          high)
      SELECT id, 0, :tenant, 'r', 64, 64, 1, false, 1, false, 0, :n - 1 FROM jobs;
    INSERT INTO payloads (job_id, index, n, segment_id, seed, guidance_scale, output_format, prompt, negative_prompt)
      SELECT jobs.id, nth, 1, 0, 0, 1, 'png', 'a', '' FROM jobs, generate_series(0, :n - 1) AS nth;
    INSERT INTO images (job_id, index, segment_id, state, claim_id)
      SELECT 1, nth, 0, state, CASE WHEN state = 1 THEN nth END
      FROM generate_series(0, :n - 1) AS nth,
      LATERAL (SELECT CASE WHEN nth < :n - 4 * :few THEN 2 ELSE (ARRAY[0, 1, 3, 4])[1 + nth % 4] END AS state) s;
    INSERT INTO images (job_id, index, segment_id, state)
      SELECT 2, nth, 0, CASE WHEN nth < :n - :few THEN 4 ELSE 2 END FROM generate_series(0, :n - 1) AS nth;
    INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, truncated,
                         unknown_words, render_seconds, claim_id)
      SELECT job_id, index, 'key', sha256('x'), 1, 'device', 'class', false, '[]', 1, 1 FROM images WHERE state = 2;
    INSERT INTO failures (job_id, index, claim_id, code, message, device, batch_images)
      SELECT job_id, index, 1, 'c', 'm', 'd', 1 FROM images WHERE state = 3;
    INSERT INTO image_scores (job_id, name, value, index) SELECT job_id, name, index % 100, index
      FROM results, unnest(ARRAY['a', 'b', 'c', 'sharpness', 'uniform']) AS name;
    INSERT INTO marks (job_id, index, mark, actor)
      SELECT job_id, index, CASE WHEN index % 2 = 0 THEN 'accepted' ELSE 'starred' END, 'a' FROM results;
    INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key)
      SELECT nth, :tenant, CASE WHEN nth <= :few THEN 'batch' ELSE 'batch_output' END, 'f', 1, sha256('x'), 'k'
      FROM generate_series(1, :n) AS nth;
    INSERT INTO jobs (id, tenant_id, state, priority, total, requests, finished_at, input_file_id, requests_done,
                      requests_failed, expires_at, completion_window, labels)
      SELECT 100 + nth, :tenant, CASE WHEN nth <= :few THEN 'failed' ELSE 'completed' END, 1, 1, 1, now(),
             CASE WHEN nth <= :few THEN nth END, 0, 1, now(), '1h',
             CAST(CASE WHEN nth <= :few THEN '{"a": "b"}' ELSE '{}' END AS jsonb)
      FROM generate_series(1, :n) AS nth;
    INSERT INTO counters (job_id, queued, done) SELECT id, 0, 1 FROM jobs WHERE id > 100;
    INSERT INTO events (tenant_id, actor, kind, subject)
      SELECT :tenant, CASE WHEN nth <= :few THEN 'rare' ELSE 'usual' END,
             CASE WHEN nth <= :few THEN 'rare' WHEN nth > :n / 2 THEN 'job.started' ELSE 'usual' END,
             'job/' || CASE WHEN nth <= :few THEN 1 ELSE nth END FROM generate_series(1, :n) AS nth;
    INSERT INTO webhook_endpoints (id, tenant_id, url, description, events, labels, secret, created_by)
      VALUES (1, :tenant, 'https://a.example', '', '{*}', '{}', 'x', 'a');
    INSERT INTO webhook_deliveries (id, endpoint_id, tenant_id, message_id, type, body, state, tries, finished_at)
      SELECT nth, 1, :tenant, nth, CASE WHEN nth <= :few OR nth % 2 = 0 THEN 'rare' ELSE 'usual' END, '{}',
             CASE WHEN nth <= :few OR nth % 2 = 1 THEN 'failed' ELSE 'delivered' END, 1, now()
      FROM generate_series(1, :n) AS nth;
    INSERT INTO webhook_tries (delivery_id, number, tenant_id, at, milliseconds)
      SELECT id, 1, tenant_id, now(), 1 FROM webhook_deliveries
    """
    for statement in statements.split(";"):
        connection.execute(text(statement), {"tenant": TENANT, "n": LARGE, "few": SMALL})
    while connection.execute(text("SELECT presswork_number_events(50000)")).scalar_one():
        pass


@pytest.fixture(scope="module")
def filled(template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[Database]:
    with fresh_database(template) as url:
        database = Database(url, application="tests")
        with database.begin_system() as connection:
            _fill(connection)
        yield database
        database.close()


def _images(job: int, state: ImageState, after: int = -1) -> Callable[[Connection], Any]:
    return lambda connection: queries.images(connection, TENANT, job, state=state, after=after, limit=SHOWN)


def _requests(job: int, state: ImageState | None) -> Callable[[Connection], Any]:
    return lambda connection: request_queries.page(connection, TENANT, job, only=state, place=None, limit=SHOWN)[0]


def _gallery(job: int, **wanted: Any) -> Callable[[Connection], Any]:
    def look(connection: Connection) -> Any:
        chosen = image_pages.Filter(**wanted)
        return image_pages.page(connection, TENANT, job, chosen, place=None, limit=SHOWN).images

    return look


def _deliveries(**wanted: Any) -> Callable[[Connection], Any]:
    def look(connection: Connection) -> Any:
        endpoint = endpoints.find(connection, TENANT, 1)
        return deliveries.page(connection, endpoint, before=None, limit=SHOWN, **wanted)

    return look


LISTS: dict[str, Callable[[Connection], Any]] = {
    "images queued": _images(1, ImageState.QUEUED),
    "images rendering": _images(1, ImageState.RENDERING),
    "images rendering, behind some": _images(1, ImageState.RENDERING, LARGE - 4 * SHOWN - 1),
    "images failed": _images(1, ImageState.FAILED),
    "images cancelled": _images(1, ImageState.CANCELLED),
    "images done": _images(2, ImageState.DONE),
    "images not failed": lambda connection: queries.images_failed_first(
        connection, TENANT, 1, failed=False, after=LARGE - 4 * SMALL - 1, limit=SHOWN
    ),
    "gallery": _gallery(1),
    "gallery of a job without failures": _gallery(2),
    "gallery of a cause": _gallery(1, cause="c"),
    "gallery of a mark": _gallery(1, mark="starred"),
    "gallery by a score": lambda connection: (
        scored.page(
            connection,
            TENANT,
            1,
            scores.wanted(["sharpness>=10", "sharpness<=90"], None),
            after=(40.0, LARGE),
            limit=SHOWN,
        ).images
    ),
    "gallery by a score, the lowest first": lambda connection: (
        scored.page(connection, TENANT, 1, scores.wanted([], "uniform"), after=None, limit=SHOWN).images
    ),
    "names of scores": lambda connection: scored.names(connection, 1),
    "requests to submit again": lambda connection: resubmission.page(connection, 1, after=LARGE // 2, limit=SHOWN),
    "requests queued": _requests(1, ImageState.QUEUED),
    "requests rendering": _requests(1, ImageState.RENDERING),
    "requests failed": _requests(1, ImageState.FAILED),
    "requests cancelled": _requests(1, ImageState.CANCELLED),
    "requests done": _requests(2, ImageState.DONE),
    "requests": _requests(1, None),
    "jobs": lambda connection: queries.jobs(connection, TENANT, before=_LAST, limit=SHOWN),
    "jobs failed": lambda connection: queries.jobs(connection, TENANT, before=_LAST, limit=SHOWN, state="failed"),
    "batches": lambda connection: batch_jobs.page(connection, TENANT, before=None, limit=SHOWN),
    "files": lambda connection: files.page(
        connection, TENANT, after=None, limit=SHOWN, newest_first=True, purpose=None
    ),
    "files of one purpose": lambda connection: files.page(
        connection, TENANT, after=None, limit=SHOWN, newest_first=True, purpose="batch"
    ),
    "actions": lambda connection: actions.page(connection, TENANT, limit=SHOWN),
    "actions of one actor": lambda connection: actions.page(connection, TENANT, limit=SHOWN, actor="rare"),
    "actions of one kind": lambda connection: actions.page(connection, TENANT, limit=SHOWN, verb="rare"),
    "actions of a time": lambda connection: actions.page(
        connection, TENANT, limit=SHOWN, since=datetime.now(UTC) - timedelta(hours=1), until=datetime.now(UTC)
    ),
    "actions about a job": lambda connection: actions.page(connection, TENANT, limit=SHOWN, job="job/1"),
    "deliveries": _deliveries(),
    "deliveries of one state": _deliveries(state="failed"),
    "deliveries of one state and one type": _deliveries(state="failed", type="rare"),
    "events": lambda connection: events.of_subject(connection, TENANT, "job/1", limit=SHOWN),
}


def rows_read(connection: Connection, look: Callable[[Connection], Any]) -> tuple[int, int]:
    """How many things the look shows, and how many rows its statements read, as EXPLAIN counts them."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        shown = len(look(connection))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    read = 0
    for statement, parameters in sent:
        found = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
        read += _rows((json.loads(found) if isinstance(found, str) else found)[0]["Plan"])
    return shown, read


def _rows(node: dict[str, Any]) -> int:
    removed = sum(value for name, value in node.items() if name.startswith("Rows Removed"))
    own = (node["Actual Rows"] + removed) * node["Actual Loops"] if "Relation Name" in node else 0
    return round(own) + sum(map(_rows, node.get("Plans", ())))


@pytest.mark.parametrize("analyzed", [False, True], ids=["new to the planner", "known to the planner"])
def test_a_page_reads_as_many_rows_as_it_shows_times_a_constant(filled: Database, stack: Stack, analyzed: bool) -> None:
    if analyzed:
        _analyze(stack, filled)
    read = {}
    for name, look in LISTS.items():
        with filled.begin(TENANT) as connection:
            shown, read[name] = rows_read(connection, look)
            assert shown == SHOWN, name
    assert {name: rows for name, rows in read.items() if rows > FEW + 30 * SHOWN} == {}


def _analyze(stack: Stack, database: Database) -> None:
    url = f"{stack.superuser_url.rpartition('/')[0]}/{database._engine.url.database}".replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")


def test_jobs_with_a_label_are_looked_for_among_so_many_at_a_time(filled: Database) -> None:
    before, pages = _LAST, 0
    found: list[int] = []
    while True:
        with filled.begin(TENANT) as connection:
            page, reached = queries.labelled_jobs(connection, TENANT, ("a", "b"), before=before, limit=50, most=5_000)
        found += [job.id for job in page]
        pages += 1
        if reached is None:
            break
        before = reached
    assert found == [100 + nth for nth in range(SMALL, 0, -1)]
    assert pages == LARGE // 5_000 + 1
