"""Jobs with `dedupe`: what the tenant has already, in the same class, is copied and not rendered."""

import dataclasses
import hashlib
import threading
from collections import Counter

import pytest
from sqlalchemy import event, text

from services.core.db.database import Database
from services.core.jobs import lifecycle
from services.core.model.errors import StoreRefused
from services.core.queue import dedupe
from services.core.storage.s3 import S3Store
from tests import factories
from tests.factories import TENANT, submit
from tests.render_loops import counts, images, mugs
from worker.outcome import Outcome
from worker.pipelines.simulated import SimulatedPipeline

DEDUPE = {"dedupe": True}


class Counting(SimulatedPipeline):
    """Notes how many images were wanted of each batch."""

    def __init__(self, settings):
        super().__init__(settings)
        self.batches = []

    def render(self, batch, on_step):
        self.batches.append(batch.wanted)
        return super().render(batch, on_step)


@pytest.fixture
def render_loop(make_render_loop):
    return make_render_loop(pipeline=Counting)


def reused(database: Database, job_id: int) -> int:
    with database.begin_system() as connection:
        counted = (
            "SELECT (SELECT reused FROM counters WHERE job_id = :id) + "
            "(SELECT coalesce(sum(reused), 0) FROM counter_deltas WHERE job_id = :id)"
        )
        return int(connection.execute(text(counted), {"id": job_id}).scalar_one())


def add_tenant(database: Database) -> int:
    with database.begin_system() as connection:
        return connection.execute(text("INSERT INTO tenants (name) VALUES ('other') RETURNING id")).scalar_one()


def is_stored(store: S3Store, image) -> bool:
    try:
        return hashlib.sha256(store.read(image.object_key)).hexdigest() == image.sha256
    except StoreRefused:
        return False


def test_a_second_job_of_the_same_requests_renders_nothing_and_has_copies_of_its_own(
    render_loop, database, fast, store
):
    rows = [{**row, "output_format": ["png", "jpeg", "webp"][n % 3]} for n, row in enumerate(mugs(20))]
    first = submit(database, fast, rows)
    render_loop.run()
    assert render_loop.pipeline.batches == [16, 4]
    charged = render_loop.charges.unpaid()
    assert charged
    second = submit(database, fast, rows, head=DEDUPE)
    render_loop.run()
    assert render_loop.pipeline.batches == [16, 4]
    assert render_loop.charges.unpaid() == charged
    assert counts(database, second) == {"done": 20}
    assert (reused(database, first), reused(database, second)) == (0, 20)
    ours, theirs = images(database, second), images(database, first)
    assert [image.sha256 for image in ours] == [image.sha256 for image in theirs]
    assert [image.reproducibility_class for image in ours] == [image.reproducibility_class for image in theirs]
    for image in theirs:
        store.drop(image.object_key)
    assert all(is_stored(store, image) for image in ours)


def test_a_job_that_does_not_ask_renders_all_and_neither_looks_nor_copies(render_loop, database, fast, store):
    submit(database, fast, mugs(16))
    render_loop.run()
    statements, requests = [], Counter()
    event.listen(render_loop.database._engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    store._client.meta.events.register("before-call.s3", lambda model, **_: requests.update([model.name]))
    again = submit(database, fast, mugs(16))
    render_loop.run()
    assert render_loop.pipeline.batches == [16, 16]
    assert reused(database, again) == 0
    assert requests == {"PutObject": 16}
    assert statements
    assert not [statement for statement in statements if "FROM results" in statement]


def test_only_what_is_missing_is_rendered_and_what_was_said_of_the_rest_is_said_again(render_loop, database, fast):
    first = submit(database, fast, mugs(6, _2="fault:flag"))
    render_loop.run()
    second = submit(database, fast, mugs(10, _2="fault:flag"), head=DEDUPE)
    render_loop.run()
    assert render_loop.pipeline.batches == [6, 4]
    assert counts(database, second) == {"done": 10}
    assert reused(database, second) == 6
    same = ("sha256", "bytes", "truncated", "flagged", "unknown_words", "reproducibility_class", "versions", "device")
    for ours, theirs in zip(images(database, second)[:6], images(database, first), strict=True):
        assert {name: getattr(ours, name) for name in same} == {name: getattr(theirs, name) for name in same}
    with database.begin_system() as connection:
        marked = connection.execute(
            text("SELECT index FROM results WHERE job_id = :id AND reused ORDER BY index"), {"id": second}
        )
        assert list(marked.scalars()) == list(range(6))


class Checking(Counting):
    """Has a safety checker, where the other has none."""

    checks = True

    def review(self, picture):
        return dataclasses.replace(picture, flagged=False)


def test_where_pictures_are_checked_none_is_copied_that_was_not(make_render_loop, render_loop, database, fast):
    submit(database, fast, mugs(4))
    render_loop.run()
    checking = make_render_loop(worker="worker-2", pipeline=Checking)
    second = submit(database, fast, mugs(4), head=DEDUPE)
    checking.run()
    assert (reused(database, second), checking.pipeline.batches) == (0, [4])
    third = submit(database, fast, mugs(4), head=DEDUPE)
    checking.run()
    assert (reused(database, third), checking.pipeline.batches) == (4, [4])
    assert {image.flagged for image in images(database, third)} == {False}


def test_a_copy_can_be_copied_and_the_newest_is_taken(render_loop, database, fast, store):
    first = submit(database, fast, mugs(4))
    render_loop.run()
    submit(database, fast, mugs(4), head=DEDUPE)
    render_loop.run()
    for image in images(database, first):
        store.drop(image.object_key)
    third = submit(database, fast, mugs(4), head=DEDUPE)
    render_loop.run()
    assert render_loop.pipeline.batches == [4]
    assert reused(database, third) == 4


def test_another_tenants_images_are_never_used(render_loop, database, fast):
    other = add_tenant(database)
    submit(database, fast, mugs(8))
    render_loop.run()
    theirs = submit(database, fast, mugs(8), tenant=other, head=DEDUPE)
    render_loop.run()
    assert render_loop.pipeline.batches == [8, 8]
    assert reused(database, theirs) == 0
    ours = submit(
        database, fast, mugs(8), head=DEDUPE
    )  # their own are older than the other tenant's, and the ones to be copied
    render_loop.run()
    assert render_loop.pipeline.batches == [8, 8]
    assert reused(database, ours) == 8


def test_an_image_of_another_class_is_never_used(make_render_loop, database, fast):
    small = make_render_loop(dataclasses.replace(fast, batch_sizes=(4, 1)), worker="small")
    submit(database, fast, mugs(16))
    small.run()
    large = make_render_loop(pipeline=Counting, worker="large")
    job_id = submit(database, fast, mugs(16), head=DEDUPE)
    large.run()
    assert large.pipeline.batches == [16]
    assert reused(database, job_id) == 0
    assert {image.reproducibility_class.rpartition("/")[2] for image in images(database, job_id)} == {"16"}


def test_a_device_short_of_memory_looks_for_the_class_that_it_would_draw_in(render_loop, database, fast):
    submit(database, fast, mugs(16, _0="fault:oom>4"))
    render_loop.run()
    drawn = list(render_loop.pipeline.batches)
    again = submit(database, fast, mugs(16, _0="fault:oom>4"), head=DEDUPE)
    render_loop.run()
    assert render_loop.pipeline.batches == drawn
    assert reused(database, again) == 16


def test_another_file_of_the_same_pixels_is_not_used(render_loop, database, fast):
    submit(database, fast, mugs(3), output_format="webp")
    render_loop.run()
    squeezed = submit(database, fast, mugs(3), head=DEDUPE, output_format="webp", output_compression=31)
    render_loop.run()
    telling = submit(database, fast, mugs(3), head=DEDUPE | {"embed_prompt": True}, output_format="webp")
    render_loop.run()
    assert render_loop.pipeline.batches == [3, 3, 3]
    assert (reused(database, squeezed), reused(database, telling)) == (0, 0)


def test_what_is_gone_from_the_store_or_is_not_what_it_was_is_rendered(render_loop, database, fast, store):
    first = submit(database, fast, mugs(6))
    render_loop.run()
    before = images(database, first)
    store.drop(before[1].object_key)
    store._client.put_object(Bucket=fast.bucket, Key=before[3].object_key, Body=b"something else")
    second = submit(database, fast, mugs(6), head=DEDUPE)
    render_loop.run()
    assert render_loop.pipeline.batches == [6, 2]
    assert counts(database, second) == {"done": 6}
    assert reused(database, second) == 4
    ours = images(database, second)
    assert [image.sha256 for image in ours] == [image.sha256 for image in before]
    assert all(is_stored(store, image) for image in ours)


def test_equal_images_of_one_claim_are_just_rendered(render_loop, database, fast):
    job_id = submit(database, fast, [mugs(1)[0]] * 8, head=DEDUPE)
    render_loop.run()
    assert render_loop.pipeline.batches == [8]
    assert counts(database, job_id) == {"done": 8}
    assert len({image.sha256 for image in images(database, job_id)}) == 1


def test_a_cancel_that_crosses_a_copy_takes_the_copy_away_and_leaves_the_source(render_loop, database, fast, store):
    first = submit(database, fast, mugs(4))
    render_loop.run()
    second = submit(database, fast, mugs(4), head=DEDUPE)
    held = render_loop._take()
    assert held.remaining == ()
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, second)
    render_loop._hand_over(Outcome(held)).result()
    assert counts(database, second) == {"cancelled": 4}
    assert reused(database, second) == 0
    assert all(is_stored(store, image) for image in images(database, first))
    with pytest.raises(StoreRefused):
        store.read(held.reused[0].object_key)


def test_images_that_need_no_rendering_do_not_keep_a_batch_going_that_nobody_wants(make_render_loop, database, fast):
    render_loop = make_render_loop()
    submit(database, fast, mugs(4), num_inference_steps=50)
    render_loop.run()
    copied = submit(database, fast, mugs(4), head=DEDUPE, num_inference_steps=50)
    doomed = submit(database, fast, [{**mugs(1)[0], "prompt": "fault:slow"}] * 12, num_inference_steps=50)
    held = render_loop._take()
    assert len(held.claim.images) == 16
    assert {image.job_id for image in held.remaining} == {doomed}
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, doomed)
    outcomes = []
    device = threading.Thread(target=lambda: outcomes.append(render_loop.device.render(held)))
    device.start()
    device.join(10)  # 50 slow seconds, if it went on
    assert not device.is_alive()
    render_loop._hand_over(outcomes[0]).result()
    assert counts(database, copied) == {"done": 4}
    assert counts(database, doomed) == {"cancelled": 12}


class Unconditional(S3Store):
    """As a store that knows no conditions: the second write of a probe succeeds."""

    def _write_new(self, verb, **arguments):
        verb(Bucket=self.bucket, **arguments)
        return True


def content(data: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(data).digest(), "size": len(data)}


def test_a_copy_overwrites_nothing_and_an_equal_object_will_do(store):
    store.put("copies/source", b"drawn", "image/png", {"class": "a"}, claim_id=1)
    copied = store.copy_new("copies/source", "copies/ours", **content(b"drawn"), claim_id=2)
    assert copied == store.copy_new("copies/source", "copies/ours", **content(b"drawn"), claim_id=3) == "copies/ours"
    store.put("copies/taken", b"other", "image/png", {}, claim_id=4)
    assert store.copy_new("copies/source", "copies/taken", **content(b"drawn"), claim_id=5) is None
    assert store.read("copies/taken") == b"other"
    assert store.copy_new("copies/source", "copies/new", **content(b"drawm"), claim_id=6) is None
    assert store.copy_new("copies/gone", "copies/new", **content(b"drawn"), claim_id=7) is None


def test_where_the_store_copies_unconditionally_a_copys_key_carries_the_claims_id(store, settings):
    store.put("copies/b.png", b"drawn", "image/png", {}, claim_id=1)
    plain = Unconditional(settings)
    assert plain.copy_new("copies/b.png", "copies/c.png", **content(b"drawn"), claim_id=9) == "copies/c-9.png"
    assert store.read("copies/c-9.png") == b"drawn"


def test_however_often_an_image_was_made_the_look_for_it_reads_a_few_of_them(database_url, database, fast, render_loop):
    job = submit(database, fast, mugs(1))
    claim = factories.claim(database, revision=render_loop.pipeline.card.revision)
    key = bytes.fromhex(claim.images[0].render_key)
    with database.begin_system() as connection:
        connection.execute(
            text("""
            INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, truncated,
                                 unknown_words, render_seconds, render_key, claim_id)
            SELECT :job, nth, 'key', sha256('x'), 1, 'device', 'class', false, '[]', 1, :key, 1
            FROM generate_series(1, 5000) AS nth
            """),
            {"job": job, "key": key},
        )
    read = text("""
    SELECT coalesce(sum(idx_tup_fetch + seq_tup_read), 0) FROM pg_stat_xact_user_tables WHERE relname LIKE 'results%'
    """)
    worker = Database(database_url, application="worker", nested_loops=True)
    with worker.begin_system() as connection:
        before = connection.execute(read).scalar_one()
        assert len(dedupe.find(connection, claim.images, "class")) == 1
        assert connection.execute(read).scalar_one() - before <= 1000
    worker.close()
