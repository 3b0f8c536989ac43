"""Two installations share a bucket: the second needs a prefix of its own, neither touches the other's objects."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import httpx
import psycopg
import pytest
from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.auditing import mark
from services.core.db.database import Database
from services.core.deletion import jobs as deletion
from services.core.exports import records
from services.core.model import ids
from services.core.model.errors import SettingsError
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage import installation, keys
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.factories import TENANT
from tests.waiting import until
from tests.web import serving
from worker import exit_codes


@pytest.fixture
def shared(store_admin: Settings, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings with a bucket of the test's own."""
    own = dataclasses.replace(store_admin, bucket=f"shared-{os.getpid()}-{abs(hash(request.node.name)) % 10**6}")
    S3Store(own).prepare()
    yield own
    store = S3Store(own)
    for key in list(store.under("")):
        store.drop(key)
    store._client.delete_bucket(Bucket=own.bucket)


@pytest.fixture
def stranger(stack, template, fresh_database) -> Iterator[Database]:
    """The database of another installation."""
    with fresh_database(template) as url:
        address = f"{stack.superuser_url.rpartition('/')[0]}/{url.rpartition('/')[2]}"
        with psycopg.connect(address.replace("+psycopg", "")) as connection:
            connection.execute("UPDATE installation SET id = gen_random_uuid()")
        with closing(Database(url, application="tests")) as other:
            yield other


def at_store(shared: Settings) -> dict[str, str]:
    """The variables of a program that uses that bucket."""
    keys = {"AWS_ACCESS_KEY_ID": shared.s3_access_key, "AWS_SECRET_ACCESS_KEY": shared.s3_secret_key}
    return keys | {"PRESSWORK_BUCKET": shared.bucket}


def claimed(database: Database, settings: Settings) -> S3Store:
    store = S3Store(settings)
    installation.claim_prefix(database, store)
    return store


def test_another_installation_is_refused_and_finds_a_place_under_a_prefix(database, stranger, shared):
    claimed(database, shared)
    claimed(database, shared)  # every program does it at every start
    with pytest.raises(SettingsError, match=r"another installation, [0-9a-f-]{36}: set PRESSWORK_PREFIX"):
        claimed(stranger, shared)
    own = dataclasses.replace(shared, prefix="shop/production/")
    claimed(stranger, own)
    with pytest.raises(SettingsError, match="'shop/production/'"):
        claimed(database, own)


def test_a_marker_that_cannot_be_read_is_nobodys(database, shared):
    S3Store(shared).mark(installation.MARKER, b"{}")
    with pytest.raises(SettingsError, match="whose marker cannot be read"):
        claimed(database, shared)


def test_a_store_without_conditional_writes_keeps_the_first_marker_too(database, stranger, shared):
    for owner, refused in ((database, False), (stranger, True)):
        store = S3Store(shared)
        store._conditional = False
        if refused:
            with pytest.raises(SettingsError):
                installation.claim_prefix(owner, store)
        else:
            installation.claim_prefix(owner, store)


@pytest.mark.parametrize("module", ["worker.app", "scheduler.app"])
def test_a_program_that_meets_another_installations_objects_ends_with_one_sentence(
    module, database, stranger, shared, environ
):
    claimed(stranger, shared)
    told = subprocess.run(
        [sys.executable, "-m", module],
        env=os.environ | environ | at_store(shared),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert told.returncode == exit_codes.SETTINGS
    assert told.stderr.splitlines()[-1].startswith(f"{module.partition('.')[0]}: The bucket '{shared.bucket}' holds")


def test_a_web_server_that_meets_another_installations_objects_is_not_ready(database, stranger, shared):
    claimed(stranger, shared)
    with serving(shared) as url:
        until(lambda: httpx.get(f"{url}/readyz", trust_env=False).json()["checks"]["store"]["status"] == "failing")


def test_objects_stay_readable_under_a_new_prefix_and_go_with_their_job_from_all_of_them(database, shared, stranger):
    before = claimed(database, shared)
    moved = dataclasses.replace(shared, prefix="shop/")
    job_id = exporting.finished_job(database, shared, before, [{"prompt": "a mug", "n": 3}])
    first = exporting.export(database, shared, before, job_id, "imagefolder")
    store = claimed(database, moved)
    later = exporting.export(database, moved, store, job_id, "imagefolder")
    keys_of = {export.id: [file.object_key for file in files_of(database, export)] for export in (first, later)}
    assert all(key.startswith("exports/") for key in keys_of[first.id])
    assert all(key.startswith("shop/exports/") for key in keys_of[later.id])
    for key in [key for some in keys_of.values() for key in some]:
        assert store.read(key)

    foreign = claimed(stranger, dataclasses.replace(shared, prefix="others/"))
    folders = keys.image_folders(TENANT, ids.public_job(job_id), 3)
    for one in (before, store, foreign):  # of a worker that lost its lease, and of another installation
        one.put(one.key(f"{folders[0]}stray.png"), b"stray", "image/png", {}, claim_id=1)
    with database.begin_system() as connection:
        deletion.delete(connection, TENANT, job_id)
    runner = BackgroundTaskRunner(database, background_tasks(moved, store, Notifier(moved.redis_url)), "scheduler-1")
    until(lambda: runner.run_once() or not jobs(database), 60, every=0.01)
    own = (installation.MARKER, mark.NAME)
    left = {key for key in S3Store(shared).under("") if "probe/" not in key and not key.endswith(own)}
    assert left == {f"others/{folders[0]}stray.png"}


def jobs(database: Database) -> int:
    with database.begin_system() as connection:
        return int(connection.execute(text("SELECT count(*) FROM jobs")).scalar_one())


def files_of(database: Database, export: records.Export) -> list[records.File]:
    with database.begin_system() as connection:
        return list(records.files(connection, export.id, limit=100))


def test_images_are_rendered_under_the_prefix(make_render_loop, database, fast, shared):
    own = dataclasses.replace(shared, prefix="shop/", lease_seconds=fast.lease_seconds)
    render_loop = make_render_loop(own, store=S3Store(own))
    factories.submit(database, own, [{"prompt": "a mug", "size": "64x64"}])
    render_loop.run()
    assert [key.endswith(".png") for key in S3Store(shared).under("shop/") if "probe/" not in key] == [True]
