"""What the deletion of a job says that it would take, row by row, and what of others it leaves out."""

import pytest
from sqlalchemy import Connection, text

from services.core.db.database import Database
from services.core.deletion import jobs as deletion
from services.core.exports import records
from services.core.model.errors import Conflict, NotFound
from tests.factories import TENANT

OTHER = 2  # a tenant
OURS, THEIRS = 11, 12  # jobs that have ended


@pytest.fixture(autouse=True)
def _two_jobs(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (:id, 'other')"), {"id": OTHER})
        connection.execute(
            text("""INSERT INTO jobs (id, tenant_id, state, priority, total, opened_at, finished_at)
                    SELECT id, :tenant, 'completed', 1, 4, now(), now() FROM unnest(ARRAY[11, 12]) AS id"""),
            {"tenant": TENANT},
        )
        connection.execute(text("INSERT INTO counters (job_id, queued) SELECT id, 0 FROM jobs"))


def add_images(connection: Connection, job_id: int, count: int, size: str) -> None:
    """Stored images; `size` is SQL that may speak of the index as `n`."""
    connection.execute(
        text(f"""INSERT INTO results (job_id, index, bytes, claim_id, render_seconds, truncated, sha256, object_key,
                                      device, reproducibility_class)
                 SELECT :id, n, {size}, 1, 1, false, sha256(''), 'k', 'd', 'c' FROM generate_series(0, :count - 1) AS n
              """),
        {"id": job_id, "count": count},
    )
    connection.execute(text("UPDATE counters SET done = :done WHERE job_id = :id"), {"id": job_id, "done": count})


def add_export(connection: Connection, number: int, job_id: int, *, size: int = 0, expires: str = "NULL") -> None:
    connection.execute(
        text(f"""INSERT INTO exports (id, tenant_id, job_id, format, state, bytes, finished_at, expires_at)
                 VALUES (:number, :tenant, :id, 'zip', 'completed', :size, now(), {expires})"""),
        {"number": number, "tenant": TENANT, "id": job_id, "size": size},
    )


def add_file(connection: Connection, number: int, *, deleted: str = "NULL", expires: str = "NULL") -> None:
    connection.execute(
        text(f"""INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key, expires_at, deleted_at)
                 VALUES (:id, :tenant, 'batch_output', 'f', 1000 * :id, sha256(''), 'k', {expires}, {deleted})"""),
        {"id": number, "tenant": TENANT},
    )


def begin_exports(connection: Connection, *numbers: int) -> None:
    statement = text("UPDATE exports SET state = 'running', finished_at = NULL WHERE id = ANY(:ids)")
    connection.execute(statement, {"ids": list(numbers)})


def stored(database: Database, job_id: int = OURS, tenant: int = TENANT) -> deletion.Stored:
    with database.begin_system() as connection:
        return deletion.stored(connection, tenant, job_id)


def test_the_bytes_of_a_jobs_own_images_are_added_up(database):
    with database.begin_system() as connection:
        add_images(connection, THEIRS, 2, "7")
    assert stored(database) == deletion.Stored(4, 0, 0, False, 0, 0, None)
    with database.begin_system() as connection:
        add_images(connection, OURS, 3, "10 * (n + 1)")
    assert stored(database) == deletion.Stored(4, 3, 60, False, 0, 0, None)


def test_the_bytes_of_very_many_images_are_estimated_from_the_first_ten_thousand(database):
    sizes = "CASE WHEN n < 9999 THEN 3 WHEN n = 9999 THEN 10003 ELSE 5000 END"
    with database.begin_system() as connection:
        add_images(connection, OURS, 10_002, sizes)
    assert stored(database) == deletion.Stored(4, 10_002, 4 * 10_002, True, 0, 0, None)


def test_the_bytes_of_images_whose_results_are_gone_are_estimated_from_those_that_are_there(database):
    """As while the deletion of a job is under way."""
    with database.begin_system() as connection:
        connection.execute(text("UPDATE counters SET done = 3"))
    assert stored(database) == deletion.Stored(4, 3, 0, False, 0, 0, None)
    with database.begin_system() as connection:
        add_images(connection, OURS, 1, "7")
        connection.execute(text("UPDATE counters SET done = 3"))
    assert stored(database) == deletion.Stored(4, 3, 3 * 7, True, 0, 0, None)


def test_exports_that_have_expired_or_are_of_another_job_are_not_counted(database):
    with database.begin_system() as connection:
        add_export(connection, 1, OURS, size=100)
        add_export(connection, 2, OURS, size=200, expires="now() + interval '1 hour'")
        add_export(connection, 3, OURS, size=400, expires="now() - interval '1 hour'")
        add_export(connection, 4, THEIRS, size=800)
    assert stored(database) == deletion.Stored(4, 0, 300, False, 2, 0, None)


def test_files_that_have_expired_or_are_deleted_are_not_counted(database):
    with database.begin_system() as connection:
        add_file(connection, 1)
        add_file(connection, 2, expires="now() + interval '1 hour'")
        add_file(connection, 4, expires="now() - interval '1 hour'")
        add_file(connection, 8, deleted="now()")
        add_file(connection, 16)  # of another job
    for error_file, files, size in ((2, 2, 3_000), (4, 1, 1_000), (8, 1, 1_000)):
        with database.begin_system() as connection:
            statement = text("UPDATE jobs SET output_file_id = 1, error_file_id = :file WHERE id = 11")
            connection.execute(statement, {"file": error_file})
        assert stored(database) == deletion.Stored(4, 0, size, False, 0, files, None)


def test_the_first_unfinished_export_of_the_job_is_what_its_deletion_waits_for(database):
    with database.begin_system() as connection:
        for number, job_id in ((1, THEIRS), (2, OURS), (3, OURS), (4, OURS)):
            add_export(connection, number, job_id)
        begin_exports(connection, 1, 3, 4)
    refusal = stored(database).refusal
    assert refusal.code == "export_not_ended" and str(refusal).startswith(records.public_id(3))
    with pytest.raises(Conflict, match=records.public_id(3)), database.begin_system() as connection:
        deletion.delete(connection, TENANT, OURS)
    with database.begin_system() as connection:
        connection.execute(text("UPDATE exports SET state = 'failed', finished_at = now() WHERE job_id = 11"))
        deletion.delete(connection, TENANT, OURS)
    with database.begin_system() as connection:
        assert list(connection.execute(text("SELECT id FROM jobs WHERE deleted_at IS NOT NULL")).scalars()) == [OURS]


def test_what_another_tenants_job_holds_is_told_nobody(database):
    for verb in (deletion.stored, deletion.delete):
        with pytest.raises(NotFound), database.begin_system() as connection:
            verb(connection, OTHER, OURS)
