"""Programs on a schema that is not their own: one release ahead they go on, else they say what to do."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import alembic.command
import alembic.config
import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.db import database as databases
from services.core.db import revisions, tables
from services.core.db.database import Database
from services.core.deletion import jobs as deletion
from services.core.jobs import retry
from services.core.model import ids, requests
from services.core.model.errors import UnsuitableDatabase
from services.core.model.specs import FailedImage
from services.core.policy import policies
from services.local.stack import Stack
from tests import exporting, factories
from tests.factories import TENANT
from tests.web import open_api

MIGRATIONS = Path(__file__).parents[2] / "migrations"
NEXT = """
from alembic import op

revision, down_revision = "9999", "{newest}"


def upgrade() -> None:
    for table in {tables}:
        op.execute(f"ALTER TABLE {{table}} ADD COLUMN of_the_next_release text DEFAULT 'new'")
    op.execute("CREATE TABLE of_the_next_release (id bigint)")
"""
OLDEST = re.compile(r'^OLDEST_PROGRAM = "\w+"$', re.MULTILINE)


@pytest.fixture
def advance(stack: Stack, database_url: str, tmp_path: Path) -> Callable[[str], None]:
    """Migrates the database as a later release would: every table has a column more. Takes the oldest program that this
    release serves."""

    def migrate(oldest: str) -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        body = NEXT.format(newest=revisions.known()[0], tables=sorted(tables.metadata.tables))
        (folder / "versions" / "9999_next.py").write_text(body)
        environment, changed = OLDEST.subn(f'OLDEST_PROGRAM = "{oldest}"', (folder / "env.py").read_text())
        assert changed == 1
        (folder / "env.py").write_text(environment)
        config = alembic.config.Config()
        config.set_main_option("script_location", str(folder))
        config.attributes["url"] = owner(stack, database_url)
        alembic.command.upgrade(config, "head")

    return migrate


def owner(stack: Stack, database_url: str) -> str:
    return f"{stack.migrator_url.rpartition('/')[0]}/{database_url.rpartition('/')[2]}"


def migrated(stack: Stack, database_url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code of `presswork migrate`, and what it prints."""
    monkeypatch.setenv("DATABASE_URL", owner(stack, database_url))
    monkeypatch.setenv("REDIS_URL", stack.values["REDIS_URL"])
    result = CliRunner().invoke(app, ["migrate"])
    return result.exit_code, result.output.replace("\n", " ").strip()


def test_a_program_does_all_its_work_on_the_schema_of_the_next_release(
    stack, database, database_url, settings, store, advance, monkeypatch
):
    advance(revisions.known()[0])
    [warning] = databases.assert_suitable(database)
    assert warning.endswith("(" + revisions.known()[0] + ") and still serves it; upgrade the program.")
    assert migrated(stack, database_url, monkeypatch) == (0, warning)
    with open_api(settings) as api:
        assert api.http.get("/readyz").json()["checks"]["database"]["status"] == "ok"
        job = api.submit({"prompt": "a mug", "n": 2}, {"prompt": "a hat"})
        job_id = ids.parse_job(str(job["id"]))
        claim = factories.claim(database)
        failed = FailedImage(job_id, 2, "error", "It broke.")
        stored = factories.stored(claim, exporting.picture(0))[:2]
        for one in stored:
            store.put(one.object_key, exporting.picture(0), "image/png", {}, claim_id=claim.id)
        factories.settle(database, claim, stored=stored, failed=[failed])
        exporting.finish(database, job_id)
        for path in ("", "/images", "/images?order=failed_first", "/requests", "/events", "/exports", "/deletion"):
            assert api.http.get(f"/v1/jobs/{job['id']}{path}").status_code == 200, path
        for path in ("/v1/jobs", "/v1/files", "/v1/batches", "/v1/models", "/metrics"):
            assert api.http.get(path).status_code == 200, path
        draft = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
        api.http.put(f"/v1/jobs/{draft}/chunks/0", json={"images": [{"prompt": "a"}]}).raise_for_status()
        api.http.post(f"/v1/jobs/{draft}/finalize", json={"chunks": 1}).raise_for_status()
        file = {"file": ("a.jsonl", b"{}")}
        file_id = api.http.post("/v1/files", data={"purpose": "batch"}, files=file).raise_for_status().json()["id"]
        assert api.http.delete(f"/v1/files/{file_id}").status_code == 200
        export_id = exporting.order(database, job_id, "zip")
        exporting.run(database, settings, store)
        assert exporting.read(database, export_id).state == "completed"
        with database.begin(TENANT) as connection:
            child = retry.retry(connection, TENANT, job_id, requests.RetryOptions(), policy=policies.NOTHING).job_id
        assert factories.claim(database).images[0].job_id in (child, ids.parse_job(draft))
        with database.begin_system() as connection:
            deletion.delete(connection, TENANT, job_id)


def test_a_program_that_is_two_releases_behind_is_told_to_be_upgraded(
    stack, database, database_url, settings, store, advance, monkeypatch
):
    advance("9999")
    with pytest.raises(UnsuitableDatabase) as caught:
        databases.assert_suitable(database)
    assert str(caught.value) == (
        f"The database is at schema revision 9999, which is newer than this program ({revisions.known()[0]}) "
        "and does not serve it any more; upgrade the program."
    )
    code, told = migrated(stack, database_url, monkeypatch)
    assert (code, told) == (1, f"presswork: {caught.value}")
    with open_api(settings) as api:
        check = api.http.get("/readyz").json()["checks"]["database"]
        assert (check["status"], check["message"]) == ("failing", str(caught.value))


def test_a_program_that_is_ahead_of_its_schema_says_to_migrate(stack, fresh_database):
    with fresh_database("template0") as url:
        databases.migrate(owner(stack, url), "0008")
        database = Database(url, application="tests")
        with pytest.raises(UnsuitableDatabase, match=r"at schema revision 0008 .* run `presswork migrate`"):
            databases.assert_suitable(database)
        database.close()


def test_the_schema_names_the_oldest_program_that_it_serves(stack, template, monkeypatch):
    engine = create_engine(stack.migrator_url)
    with engine.connect() as connection:
        noted = connection.execute(text("SELECT obj_description('alembic_version'::regclass)")).scalar_one()
    engine.dispose()
    oldest = OLDEST.search((MIGRATIONS / "env.py").read_text())
    assert oldest is not None
    assert noted == f"serves programs from revision {oldest[0].split()[-1].strip(chr(34))}"
    assert noted.split()[-1] in revisions.known()
