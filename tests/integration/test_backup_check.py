"""`presswork backup check`: missing images are drawn again, what is extra is listed, and nothing is deleted."""

import io
import json

import psycopg
import pytest
from sqlalchemy import text

from services.core.auditing import audits, mark
from services.core.backups import comparing, other_objects, remedies
from services.core.db.leases import Lease
from services.core.exports import exports, records
from services.core.exports.options import ExportRequest
from services.core.model import ids
from services.core.storage import installation, keys
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.factories import TENANT
from tests.processes import Command


@pytest.fixture
def own(environ, settings, database):
    """A store with a prefix of its own, claimed."""
    environ["PRESSWORK_PREFIX"] = f"backup-{ids.new()}/"
    store = S3Store(type(settings).read(environ))
    store.prepare()
    installation.claim_prefix(database, store)
    factories.register(database)
    return store


def check(environ, folder, *arguments):
    """The command's exit code and its answer."""
    log = folder / f"check-{ids.new()}.log"
    command = Command(environ, log, "backup", "check", *arguments, "--json", cwd=folder)
    code = command.popen.wait(60)
    said = log.read_text()
    return code, json.loads(said[said.index("{") :])


def finished(database, settings, store):
    job_id = exporting.finished_job(database, settings, store)
    with database.begin_system() as connection:
        rows = connection.execute(
            text("SELECT object_key FROM results WHERE job_id = :id ORDER BY index"), {"id": job_id}
        )
        return job_id, list(rows.scalars())


def test_what_a_restore_has_lost_is_drawn_again_or_listed_and_nothing_is_deleted(
    environ, database, settings, own, tmp_path
):
    job_id, objects = finished(database, settings, own)
    put = lambda key: own.put_file(key, io.BytesIO(b"bytes"), "image/png")  # noqa: E731
    lost_minute = [
        own.key(keys.image_name(TENANT, ids.public_job(ids.new()), index, "f" * 64, "png")) for index in range(25)
    ]
    for key in lost_minute:
        put(key)
    own.drop(objects[0])
    put(objects[1])
    with database.begin_system() as connection:
        connection.execute(
            text("""INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key)
                    VALUES (7, 1, 'batch', 'a.jsonl', 1, sha256(''), 'files/1/file-7')""")
        )
        connection.execute(
            text("""INSERT INTO storage_orphans (object_key, audit_id, first_seen_at)
                    SELECT unnest(CAST(:keys AS text[])), 0, now() - interval '8 days'"""),
            {"keys": lost_minute},
        )
    code, found = check(environ, tmp_path, "--share", "1", "--extra", "extra.txt")
    assert code == 3 and found["restored"] is None
    assert (found["missing"], found["damaged"], found["requeued"], found["deleted"]) == (1, 1, 2, 0)
    [lost] = found["lost"]
    assert (lost["job"], lost["missing"], lost["damaged"]) == (ids.public_job(job_id), 1, 1)
    with database.begin_system() as connection:
        child = connection.execute(
            text("SELECT parent_id, total FROM jobs WHERE id = :id"), {"id": ids.parse_job(lost["drawn_in"])}
        ).one()
        events = connection.execute(
            text("SELECT kind, actor FROM events WHERE kind LIKE 'storage.%' ORDER BY id")
        ).all()
    assert tuple(child) == (job_id, 2)
    assert [row.kind for row in events] == ["storage.audit_requested", "storage.audited"]
    assert all(row.actor.startswith("cli/") for row in events)
    assert (tmp_path / "extra.txt").read_text().split() == sorted(lost_minute) and found["orphans"] == 25
    [lost_file] = found["missing_objects"]
    assert lost_file["keys"] == ["files/1/file-7"] and "log is not archived" in found["log"]
    assert set(lost_minute) < set(own.under("")), "what is extra is old enough to be deleted, and was not"


def test_a_check_after_a_recovery_says_so_and_accepts_nothing(environ, database, settings, own, tmp_path):
    finished(database, settings, own)
    mark.renew(database, own)
    assert check(environ, tmp_path)[1]["restored"] is None
    own.put_file(own.key(mark.NAME), io.BytesIO(b'{"epoch": 1, "server": "1/2/3"}'), "application/json")
    for _ in range(2):
        code, found = check(environ, tmp_path)
        assert code == 0 and "restored" in found["restored"]


@pytest.mark.parametrize(
    ("marker", "sentence"),
    [
        (None, "has no presswork-installation.json"),
        (b'{"installation": "another"}', "of another installation, another"),
    ],
)
def test_in_a_bucket_that_is_not_this_installations_nothing_is_compared(
    environ, database, settings, own, tmp_path, marker, sentence
):
    finished(database, settings, own)
    own.drop(own.key(installation.MARKER))
    if marker is not None:
        own.put_file(own.key(installation.MARKER), io.BytesIO(marker), "application/json")
    log = tmp_path / "check.log"
    assert Command(environ, log, "backup", "check", cwd=tmp_path).popen.wait(60) == 2
    assert sentence in " ".join(log.read_text().split())
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM storage_audits")).scalar_one() == 0


def test_a_check_waits_for_a_run_that_is_under_way_and_then_does_its_own(database, settings, own):
    with database.begin_system() as connection:
        before = audits.request(connection, 0.0)
    other = Lease(database, f"audit-storage/{before.id}", "a scheduler that has died", seconds=2.0)
    assert other.take()
    said = []
    ended = comparing.run(settings, database, own, "cli/test", share=0.0, say=said.append)
    assert ended.id != before.id and ended.keeps_orphans and ended.finished_at is not None
    assert {audit.id for audit in said} == {before.id, ended.id}


def test_pages_of_records_are_read_to_their_end(database, own, monkeypatch):
    monkeypatch.setattr(other_objects, "_AT_ONCE", 2)
    with database.begin_system() as connection:
        connection.execute(
            text("""INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key, deleted_at)
                    SELECT n, 1, 'batch', 'a', 1, sha256(''), 'files/1/' || n, CASE WHEN n = 3 THEN now() END
                    FROM generate_series(1, 7) n""")
        )
    own.put_file(own.key("files/1/5"), io.BytesIO(b"x"), "text/plain")
    with database.begin_system() as connection:
        connection.execute(text("UPDATE files SET object_key = :key WHERE id = 5"), {"key": own.key("files/1/5")})
    gone = [one.object_key for one in other_objects.missing(database, own)]
    assert gone == [f"files/1/{n}" for n in (1, 2, 4, 6, 7)]


def test_a_claim_of_the_time_before_a_restore_settles_nothing(stack, database_url, database, settings):
    """What a worker that outlives the restore holds is another claim, though the sequence begins again."""
    factories.register(database)
    factories.submit(database, settings, 4)
    before = factories.claim(database)
    with database.begin_system() as connection:  # as a restore to the moment before the claim leaves it
        connection.execute(text("UPDATE images SET state = 0, claim_id = NULL"))
        connection.execute(text("DELETE FROM claims"))
        connection.execute(text("DELETE FROM counter_deltas"))
        connection.execute(text("UPDATE counters SET queued = 4, rendering = 0"))
    owner_url = f"{stack.superuser_url.rpartition('/')[0]}/{database_url.rpartition('/')[2]}"
    with psycopg.connect(owner_url.replace("+psycopg", ""), autocommit=True) as owner:
        owner.execute("ALTER SEQUENCE claims_id_seq RESTART")
    after = factories.claim(database)
    assert len(after.images) == 4
    assert factories.settle(database, before).verdict == "fenced"
    assert factories.settle(database, after).verdict == "ok"


LOST = {  # what a record names, and what is said of it
    "a picture": (
        """INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key)
           VALUES (7, 1, 'vision', 'mug.png', 1, sha256(''), :key)""",
        "picture file-",
        "upload it again, and submit",
    ),
    "a batch's input": (
        """INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key)
           VALUES (8, 1, 'batch', 'a.jsonl', 1, sha256(''), :key)""",
        "batch input file-",
        "create the batches again",
    ),
    "a batch's output": (
        """INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key, job_id)
           VALUES (9, 1, 'batch_output', 'out.jsonl', 1, sha256(''), :key, 9)""",
        "batch output file-",
        f"its images are in {ids.public_job(9)}",
    ),
    "a part of an upload": (
        """WITH u AS (INSERT INTO uploads (id, tenant_id, purpose, filename, bytes, expires_at)
                      VALUES (7, 1, 'batch', 'big.jsonl', 1, now() + interval '1 hour') RETURNING id)
           INSERT INTO upload_parts (id, upload_id, tenant_id, bytes, sha256, object_key)
           SELECT 8, id, 1, 1, sha256(''), :key FROM u""",
        "upload upload_",
        "begin the upload again",
    ),
    "a shard of a data set": (
        """WITH d AS (INSERT INTO datasets (id, tenant_id, name, format, definition)
                      VALUES (7, 1, 'mugs', 'webdataset', '{}') RETURNING id)
           INSERT INTO dataset_files (dataset_id, since, path, tenant_id, split, ordinal, bytes, sha256, images,
             object_key)
           SELECT id, 1, 'data/train-0.tar', 1, 'train', 0, 1, sha256(''), 1, :key FROM d""",
        "data set mugs",
        "`presswork dataset show mugs`",
    ),
    "a manifest": (
        """WITH c AS (INSERT INTO catalogues (id, tenant_id, name, public_id, definition, published)
                      VALUES (7, 1, 'shop', 'p', '{}', 4) RETURNING id)
           INSERT INTO catalogue_versions (catalogue_id, version, run_id, images, bytes, manifests)
           SELECT id, 4, 5, 1, 1, jsonb_build_object('jsonl', jsonb_build_array(CAST(:key AS text), '', 1)) FROM c""",
        "manifest of version 4 of the catalogue shop",
        "`presswork catalogue rollback`",
    ),
}


def test_of_what_nobody_can_draw_again_it_says_whose_it_is_and_what_to_do(environ, database, own, tmp_path):
    with database.begin_system() as connection:
        for key, (record, _, _) in LOST.items():
            connection.execute(text(record), {"key": key})
    code, found = check(environ, tmp_path)
    said = {key: one for one in found["missing_objects"] for key in one["keys"]}
    assert code == 3 and said.keys() == LOST.keys()
    for key, (_, thing, todo) in LOST.items():
        assert said[key]["thing"].startswith(thing) and todo in said[key]["todo"], said[key]
        assert (said[key]["made_again"], said[key]["tenant"]) == (None, "default")


def losses(database, own):
    return remedies.losses(database, own, other_objects.missing(database, own))


def test_an_export_that_lost_a_file_is_written_again_once(database, settings, own):
    job_id, _ = finished(database, settings, own)
    asked = ExportRequest(format="parquet", options={"images_per_shard": 7})
    with database.begin_system() as connection:
        lost, _ = exports.create(connection, TENANT, job_id, asked, base_url="http://here")
        connection.execute(
            text("""INSERT INTO export_files (export_id, path, tenant_id, shard, bytes, sha256, images, object_key)
                    SELECT :id, name, 1, 0, 1, sha256(''), 1, 'exports/1/' || name
                    FROM unnest(ARRAY['a', 'b']) name"""),
            {"id": lost},
        )
    for _ in range(2):
        [one] = losses(database, own)
        with database.begin_system() as connection:
            made = [one for one in records.of_job(connection, TENANT, job_id, before=2**62, limit=9) if one.id != lost]
        assert one.keys == ["exports/1/a", "exports/1/b"] and one.todo is None
        assert [f"written again as {records.public_id(export.id)}" for export in made] == [one.made_again]
    assert (made[0].format, made[0].options.images_per_shard, made[0].base_url) == ("parquet", 7, "http://here")
    with database.begin_system() as connection:  # nobody sees it any more
        exports.remove(connection, TENANT, lost)
    assert losses(database, own) == []


def test_a_catalogue_s_pictures_are_copied_again_from_their_images(database, settings, own):
    job_id, objects = finished(database, settings, own)
    targets = [own.key(f"catalogues/1/x/objects/{index}.png") for index in range(3)]
    with database.begin_system() as connection:
        connection.execute(
            text("""WITH c AS (INSERT INTO catalogues (id, tenant_id, name, public_id, definition, published)
                               VALUES (7, 1, 'shop', 'p', '{}', 4) RETURNING id)
                    INSERT INTO catalogue_entries (catalogue_id, item, variant, from_version, until_version, render_key,
                      object_key, sha256, bytes, request, model_revision, reproducibility_class, rendered_at, job_id,
                      index)
                    SELECT c.id, 'SKU-' || index, 'front', 3, CASE index WHEN 2 THEN 4 END, sha256(''),
                      (CAST(:targets AS text[]))[index + 1], sha256, bytes, '{}', '', '', now(), job_id, index
                    FROM c, results WHERE job_id = :job_id AND index < 3"""),
            {"job_id": job_id, "targets": targets},
        )
    for key in objects[1:3]:
        own.drop(key)
    said = {tuple(one.keys): one.made_again or one.todo for one in losses(database, own)}
    assert said[(targets[0],)] == "copied again from its job's images"
    assert b"".join(own.stream(targets[0])) == b"".join(own.stream(objects[0]))
    assert said[(targets[1],)].endswith("draws them: SKU-1")
    assert said[(targets[2],)] == "do not publish them: they lack pictures"
    assert {key for one in losses(database, own) for key in one.keys} == set(targets[1:])
