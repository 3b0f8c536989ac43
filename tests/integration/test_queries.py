"""What a look at a few images of a large job reads: those images, and not the job."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from services.core.db.database import Connection, Database
from services.core.jobs import queries
from services.core.model.states import ImageState
from services.core.settings import Settings
from tests import factories

IMAGES = 20_000
TENANT = factories.TENANT
_READ = text("""
SELECT sum(coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0)) FROM pg_stat_xact_user_tables
WHERE relname LIKE 'results%' OR relname LIKE 'payloads%'
""")


@pytest.fixture
def job(database: Database, settings: Settings) -> int:
    """All done, and so new that the planner knows nothing of it."""
    factories.register(database)
    number = factories.submit(database, settings, IMAGES, size="64x64")
    with database.begin_system() as connection:
        connection.execute(text("UPDATE images SET state = 2 WHERE job_id = :id"), {"id": number})
        connection.execute(
            text("""
            INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, truncated,
                                 unknown_words, render_seconds, claim_id)
            SELECT job_id, index, 'key', sha256('x'), 1, 'device', 'class', false, '[]', 1, 1
            FROM images WHERE job_id = :id
            """),
            {"id": number},
        )
    return number


@pytest.mark.parametrize(
    "look",
    [
        lambda connection, job: [queries.image(connection, TENANT, job, IMAGES - 1)],
        lambda connection, job: [queries.image(connection, None, job, IMAGES - 1)],
        lambda connection, job: queries.images(connection, TENANT, job, state=None, after=IMAGES // 2, limit=10),
        lambda connection, job: queries.images(connection, TENANT, job, state=ImageState.DONE, after=9, limit=10),
        lambda connection, job: queries.images_failed_first(connection, TENANT, job, failed=False, after=9, limit=10),
    ],
    ids=["one", "one by its link", "a page", "a page of the done", "a page behind the failed"],
)
def test_a_look_at_few_images_reads_few_rows(
    database: Database, job: int, look: Callable[[Connection, int], list[Any]]
) -> None:
    with database.begin(TENANT) as connection:
        before = connection.execute(_READ).scalar_one()  # counted by this session and not yet reported to the server
        found = look(connection, job)
        assert [image.sha256 is not None for image in found] == [True] * len(found)
        assert len(found) in (1, 10)
        assert connection.execute(_READ).scalar_one() - before <= 10 * len(found)
