"""The migrated schema against the tables that the code knows, and row-level security."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from services.core.batches import results
from services.core.db import database as databases
from services.core.db import leadership, leases, partitions, tables
from services.core.files import uploads
from services.core.jobs import queries, request_queries
from services.core.model import ids
from services.core.model.errors import UnsuitableDatabase
from tests import factories
from tests.waiting import until

VERSIONS = Path(__file__).parents[2] / "migrations/versions"
_SMALL = {"tenant_deletions"}  # a row for each tenant that was ever deleted


def test_the_migrations_make_exactly_the_tables_that_the_code_knows(stack, template):
    engine = create_engine(stack.migrator_url)
    ours = set(tables.metadata.tables)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_name": lambda name, kind, _parents: kind != "table" or name in ours,
            },
        )
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


def test_the_second_migration_touches_no_row_of_results_and_says_nothing_of_them_that_is_not_known(
    stack, fresh_database
):
    """A table that keeps its file was not rewritten, however many rows it has."""
    with fresh_database("template0") as url:
        name = url.rpartition("/")[2]
        migrator_url = f"{stack.migrator_url.rpartition('/')[0]}/{name}"
        databases.migrate(migrator_url, "0001")
        engine = create_engine(databases.driver_url(migrator_url))
        files = text(
            "SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relname ~ '^results' "
            "AND relkind IN ('r', 'p') ORDER BY 1"
        )
        with engine.begin() as connection:
            job_id = ids.new()
            connection.execute(text("SELECT set_config('app.tenant', '*', true)"))
            for index, job in enumerate((job_id, 1)):  # one in a week's partition, one in the default
                connection.execute(_OLD_RESULT, {"job_id": job, "index": index})
            before = connection.execute(files).all()
        databases.migrate(migrator_url)
        with engine.begin() as connection:
            connection.execute(text("SELECT set_config('app.tenant', '*', true)"))
            assert connection.execute(files).all() == before
            connection.execute(_OLD_RESULT, {"job_id": job_id, "index": 7})  # a worker that was not stopped for it
            rows = connection.execute(text("SELECT truncated, engine_id, flagged, unknown_words FROM results")).all()
            assert [tuple(row) for row in rows] == [(True, None, None, [])] * 3
            assert connection.execute(text("SELECT presswork_make_partitions('2027-03-01', 1)")).scalar_one() == 3
        engine.dispose()


def test_a_migration_that_indexes_jobs_keeps_nobody_from_writing_them(stack, fresh_database):
    """While it waits for a transaction that began before it, and while it builds."""
    with fresh_database("template0") as url:
        migrator_url = f"{stack.migrator_url.rpartition('/')[0]}/{url.rpartition('/')[2]}"
        databases.migrate(migrator_url, "0047")
        engine = create_engine(databases.driver_url(migrator_url))
        building = text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND state = 'active' "
                        "AND datname = current_database()")  # fmt: skip
        with ThreadPoolExecutor(1) as pool:
            with engine.begin() as before, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
                before.execute(text("UPDATE jobs SET priority = priority"))
                migration = pool.submit(databases.migrate, migrator_url)
                until(lambda: other.execute(building).scalar_one() == 1)
                other.execute(text("SET lock_timeout = '2s'"))
                other.execute(text("UPDATE jobs SET priority = priority"))
            migration.result(60)
        with engine.begin() as connection:
            valid = "SELECT count(*) FROM pg_index WHERE indexrelid::regclass::text LIKE 'jobs_with_%' AND indisvalid"
            assert connection.execute(text(valid)).scalar_one() == 3
        engine.dispose()


def test_indexes_of_tables_that_exist_are_built_beside_other_sessions():
    for file in sorted(VERSIONS.glob("*.sql")):
        sql = file.read_text()
        made = {*re.findall(r"CREATE TABLE (\w+)", sql), *_SMALL}
        indexed = set(re.findall(r"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)\w+ ON (\w+)", sql))
        assert file.name < "0042" or indexed <= made, f"{file.name}: indexes.build() is for {indexed - made}"


def test_an_index_that_was_cut_off_while_it_was_built_is_finished_and_covers_every_partition(stack, fresh_database):
    with fresh_database("template0") as url:
        migrator_url = f"{stack.migrator_url.rpartition('/')[0]}/{url.rpartition('/')[2]}"
        databases.migrate(migrator_url, "0003")
        engine = create_engine(databases.driver_url(migrator_url))
        with engine.begin() as connection:
            connection.execute(text("CREATE INDEX results_default_render_key_idx ON results_default (render_key) "
                                    "WHERE render_key IS NOT NULL"))  # fmt: skip
        databases.migrate(migrator_url)
        with engine.begin() as connection:
            found = connection.execute(text(
                "SELECT count(*), bool_and(indisvalid) FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
                "WHERE c.relname ~ 'render_key'"
            )).one()  # fmt: skip
            leaves = text("SELECT count(*) FROM pg_inherits WHERE inhparent = 'results'::regclass")
            assert tuple(found) == (connection.execute(leaves).scalar_one() + 1, True)
        engine.dispose()


_OLD_RESULT = text("""
INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, truncated,
                     render_seconds, claim_id)
VALUES (:job_id, :index, 'key', sha256('x'), 1, 'd', 'c', true, 0.1, 1)
""")


_BEFORE = "0004"
_FILLED = text("""
WITH job AS (
  INSERT INTO jobs (id, tenant_id, state, priority, total, requests) VALUES (:job_id, 1, 'queued', 1, 30, 10)
), segment AS (
  INSERT INTO segments (job_id, id, tenant_id, model_revision, width, height, steps, guided, priority, open, low, high)
  VALUES (:job_id, 0, 1, :revision, 64, 64, 10, true, 1, true, 0, 29)
), payload AS (
  INSERT INTO payloads (job_id, index, n, segment_id, seed, guidance_scale, output_format, custom_id, prompt,
                        negative_prompt)
  SELECT :job_id, nth * 3, 3, 0, 9223372036854775807, 7.5, 'png', 'mug-' || nth, 'a mug', ''
  FROM generate_series(0, 9) AS nth
), image AS (
  INSERT INTO images (job_id, index, segment_id, state, not_before)
  SELECT :job_id, nth, 0, CASE WHEN nth < 10 THEN 2 ELSE 0 END, CASE WHEN nth % 2 = 0 THEN now() END
  FROM generate_series(0, 29) AS nth
), result AS (
  INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, truncated,
                       render_seconds, claim_id)
  SELECT :job_id, nth, 'key', sha256('x'), 1, 'd', 'c', false, 0.1, 1 FROM generate_series(0, 9) AS nth
), counter AS (
  INSERT INTO counters (job_id, queued, done) VALUES (:job_id, 25, 5)
), delta AS (
  INSERT INTO counter_deltas (job_id, queued, done) SELECT :job_id, -1, 1 FROM generate_series(1, 5)
)
INSERT INTO uploads (id, tenant_id, purpose, filename, bytes, mime_type, expires_at)
VALUES (:job_id, 1, 'batch', 'old.jsonl', 7, 'text/plain', now() + interval '1 hour')
""")


def test_a_filled_database_is_migrated_without_touching_an_image_and_everything_of_it_still_reads(
    stack, fresh_database, settings
):
    with fresh_database("template0") as url:
        migrator_url = f"{stack.migrator_url.rpartition('/')[0]}/{url.rpartition('/')[2]}"
        databases.migrate(migrator_url, _BEFORE)
        engine = create_engine(databases.driver_url(migrator_url))
        jobs = [ids.new(), 1]  # one in a week's partition, one in the default
        files = text(
            "SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relname ~ '^(images|payloads|uploads)' "
            "AND relkind = 'r' ORDER BY 1"
        )
        with engine.begin() as connection:
            connection.execute(text("SELECT set_config('app.tenant', '*', true)"))
            for job_id in jobs:
                connection.execute(_FILLED, {"job_id": job_id, "revision": factories.REVISION})
            before = connection.execute(files).all()
        databases.migrate(migrator_url)
        with engine.begin() as connection:
            assert connection.execute(files).all() == before
        engine.dispose()
        database = databases.Database(url, application="tests")
        try:
            _reads(database, jobs)
            factories.register(database)
            newer = factories.submit(database, settings, 3, size="64x64", num_inference_steps=10)
            taken = [factories.claim(database), factories.claim(database), factories.claim(database)]
            assert [len(claim.images) for claim in taken] == [16, 16, 11]
            assert {image.job_id for claim in taken for image in claim.images} == {*jobs, newer}
            for claim in taken:
                assert factories.settle(database, claim).verdict == "ok"
        finally:
            database.close()


def _reads(database, jobs):
    for job_id in jobs:
        with database.begin(1) as connection:
            view = queries.job(connection, 1, job_id)
            assert (view.counts["queued"], view.counts["done"], view.total) == (20, 10, 30)
            shown = queries.images(connection, 1, job_id, state=None, after=-1, limit=100)
            assert [image.seed for image in shown[:4]] == [2**63 - 1, 0, 1, 2**63 - 1]
            assert [image.payload.custom_id for image in shown[::3]] == [f"mug-{n}" for n in range(10)]
            found, _ = request_queries.page(connection, 1, job_id, only=None, place=None, limit=100)
            assert sorted(request.payload.index for request in found) == list(range(0, 30, 3))
            assert len(results.page(connection, job_id, limit=100)) == 10
            assert uploads.find(connection, 1, job_id).filename == "old.jsonl"


def test_the_application_is_no_superuser_and_the_database_is_durable(database):
    assert databases.assert_suitable(database) == []


def test_a_database_that_could_lose_commits_is_refused(stack, template, database_url):
    engine = create_engine(stack.superuser_url.rpartition("/")[0] + "/" + database_url.rpartition("/")[2])
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(
            text("ALTER ROLE presswork_app SET synchronous_commit = off")
        )
        try:
            with pytest.raises(UnsuitableDatabase, match="synchronous_commit = off"):
                databases.assert_suitable(databases.Database(database_url, application="t"))
        finally:
            connection.execute(text("ALTER ROLE presswork_app RESET synchronous_commit"))
    engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE images SET state = 9",
        "UPDATE images SET state = 1",  # rendering, and no claim
        "UPDATE counters SET queued = -1",
        "INSERT INTO counter_deltas (job_id, queued) VALUES (1, 1)",
        "UPDATE jobs SET state = 'completed'",  # finished, and never ended
        "UPDATE jobs SET state = 'lost'",
    ],
)
def test_the_database_itself_forbids_impossible_rows(database, settings, statement):
    factories.register(database)
    factories.submit(database, settings, 1)
    with pytest.raises(IntegrityError), database.begin_system() as connection:
        connection.execute(text(statement))


def test_the_application_can_neither_read_a_partition_nor_drop_one(database, settings):
    factories.register(database)
    leaf = partitions.partition_name("payloads", factories.submit(database, settings, 1))
    for statement in (f"SELECT * FROM {leaf}", f"DROP TABLE {leaf}", "DELETE FROM images", "TRUNCATE payloads"):
        with (
            pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
            database.begin_system() as connection,
        ):
            connection.execute(text(statement))


def test_the_view_of_counts_adds_deltas_up_and_shows_a_tenant_its_own_jobs_alone(
    stack, database, database_url, settings
):
    """Also if the role that migrated it may see every row."""
    admin = create_engine(stack.superuser_url.rpartition("/")[0] + "/" + database_url.rpartition("/")[2])
    with admin.begin() as connection:
        connection.execute(text("ALTER VIEW job_counts OWNER TO CURRENT_USER"))
    admin.dispose()
    factories.register(database)
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other') ON CONFLICT DO NOTHING"))
    mine, theirs = factories.submit(database, settings, 3), factories.submit(database, settings, 2, tenant=2)
    factories.claim(database)
    counts = text("SELECT job_id, queued, rendering, done, failed, cancelled, reused FROM job_counts ORDER BY 1")
    with database.begin_system() as connection:
        found = connection.execute(counts).all()
        assert [tuple(row) for row in found] == [(mine, 0, 3, 0, 0, 0, 0), (theirs, 0, 2, 0, 0, 0, 0)]
    for tenant, job_id in ((1, mine), (2, theirs)):
        with database.begin(tenant) as connection:
            assert [row.job_id for row in connection.execute(counts)] == [job_id]
    for said in ("", "SET LOCAL app.tenant = '*'", "SET LOCAL app.tenant = ''", "RESET app.tenant"):
        with database.begin(1) as connection:  # it has not said whose it is, or lies
            connection.execute(text("SET LOCAL app.tenant = ''; " + said))
            assert connection.execute(counts).all() == []


def test_one_scheduler_leads_and_an_ex_leader_writes_nothing(database):
    with database.begin_system() as connection:
        first = leadership.lead(connection, "a", 30.0)
        assert leadership.lead(connection, "b", 30.0) is None
        assert leadership.lead(connection, "a", 30.0) == first
    with database.begin_system() as connection:
        connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 second'"))
    with database.begin_system() as connection:
        second = leadership.lead(connection, "b", 30.0)
    assert second == first + 1
    with pytest.raises(leases.LeaseLost), database.begin_system() as connection:
        leadership.assert_held(connection, "a", first)
    with database.begin_system() as connection:
        leadership.assert_held(connection, "b", second)
