"""The worker's loop in this process, with the simulated pipeline, a real database and a real store."""

import contextlib
import dataclasses
import hashlib
import threading
import time
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from services.core.jobs import lifecycle, queries
from services.core.model import ids
from services.core.model.errors import StoreUnavailable
from services.core.model.specs import Shape
from services.core.model.states import ImageState
from services.core.queue import counters, expiry
from services.core.storage import keys, s3
from tests.factories import TENANT, claim, submit
from tests.proxy import Proxy
from tests.render_loops import counts, images, mugs
from tests.waiting import until
from worker import judging, storing
from worker.pipeline import InvalidOutput, OutOfMemory, Picture, reproducibility_class
from worker.pipelines import simulated
from worker.pipelines.simulated import SimulatedPipeline


def test_every_stored_object_has_the_sha256_that_the_database_records(make_render_loop, database, fast, store):
    render_loop = make_render_loop()
    formats = ["png", "jpeg", "webp"]
    job_id = submit(database, fast, [{**row, "output_format": formats[i % 3]} for i, row in enumerate(mugs(40))])
    assert render_loop.run()
    assert counts(database, job_id) == {"done": 40}
    for image in images(database, job_id):
        data = store.read(image.object_key)
        assert hashlib.sha256(data).hexdigest() == image.sha256
        assert len(data) == image.bytes


def test_a_stored_file_tells_its_spec_and_class_and_is_as_compressed_as_was_asked(
    make_render_loop, database, fast, store
):
    render_loop = make_render_loop()
    rows = [{**mugs(1)[0], "output_format": "jpeg", "output_compression": quality} for quality in (5, 95)]
    job_id = submit(database, fast, [*rows, mugs(1)[0]], head={"embed_prompt": True})
    render_loop.run()
    squeezed, fine, lossless = images(database, job_id)
    assert squeezed.bytes < fine.bytes
    assert len({image.object_key.rpartition("-")[2] for image in (squeezed, fine, lossless)}) == 3
    for image in (squeezed, fine, lossless):
        told = store.read(image.object_key).decode("latin-1")
        assert "<presswork:Prompt>mug 0</presswork:Prompt>" in told
        assert f"<presswork:ReproducibilityClass>{image.reproducibility_class}</presswork:Repro" in told
    with database.begin_system() as connection:
        keys = connection.execute(text("SELECT encode(render_key, 'hex') FROM results ORDER BY index")).scalars().all()
    assert [key[:16] in image.object_key for key, image in zip(keys, images(database, job_id), strict=True)] == [
        True
    ] * 3


def test_the_same_spec_gives_the_same_file_whatever_its_neighbours(make_render_loop, database, fast):
    render_loop = make_render_loop()
    alone = submit(database, fast, mugs(1))
    render_loop.run()
    among = submit(database, fast, mugs(33))
    render_loop.run()
    (first,) = images(database, alone)
    assert first.sha256 == images(database, among)[0].sha256


@pytest.mark.parametrize(
    ("fault", "code"), [("fault:raise", "render_error"), ("fault:nan", "invalid_output"), ("fault:oom", "resource")]
)
def test_a_prompt_that_fails_fails_alone_in_a_batch_of_sixteen(make_render_loop, database, fast, fault, code):
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(16, _5=fault, _11=fault))
    render_loop.run()
    assert counts(database, job_id) == {"done": 14, "failed": 2}
    assert {(i.index, i.error_code) for i in images(database, job_id, ImageState.FAILED)} == {(5, code), (11, code)}


def test_a_flagged_picture_is_done_like_any_other_and_its_neighbours_are_not_flagged(make_render_loop, database, fast):
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(4, _2="fault:flag"))
    render_loop.run()
    assert counts(database, job_id) == {"done": 4}
    assert [image.flagged for image in images(database, job_id)] == [None, None, True, None]
    assert {(image.versions, image.unknown_words) for image in images(database, job_id)} == {
        (render_loop.pipeline.versions, ())
    }


@pytest.mark.parametrize("versions", ["presswork 0.0.9", None])
def test_of_an_adopted_object_the_versions_are_its_writers_and_the_verdict_is_our_own(
    make_render_loop, database, fast, store, versions
):
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(1, _0="fault:flag"))
    theirs = claim(database, revision=render_loop.pipeline.card.revision, lease=0.0)
    (image,) = theirs.images
    key = keys.image_name(
        image.tenant_id, ids.public_job(job_id), 0, image.spec.render_key(image.output_format), image.output_format
    )
    store.put(key, b"theirs", "image/png", {} if versions is None else {"versions": versions}, claim_id=theirs.id)
    with database.begin_system() as connection:
        assert expiry.expire(connection, 0.0) == 1
    render_loop.run()
    (shown,) = images(database, job_id)
    assert shown.sha256 == hashlib.sha256(b"theirs").hexdigest()
    assert (shown.versions, shown.flagged) == (versions, True)


def test_an_object_whose_bytes_are_not_those_of_its_sha256_is_not_adopted(store, fast):
    """Half an upload, or another's file: it stays where it is, and ours goes under the claim's own key."""
    claimed = hashlib.sha256(b"whole").hexdigest()
    for key, metadata in (("torn/a.png", {"sha256": claimed}), ("torn/b.png", {})):
        store._client.put_object(Bucket=fast.bucket, Key=key, Body=b"who", Metadata=metadata)
        ours = store.put(key, b"whole", "image/png", {}, claim_id=7)
        assert (ours.key, ours.adopted) == (key.replace(".png", "-7.png"), False)
        assert ours.sha256 == hashlib.sha256(b"whole").digest()
        assert (store.read(key), store.read(ours.key)) == (b"who", b"whole")


def test_out_of_memory_steps_down_remembers_and_is_recorded_in_the_class(make_render_loop, database, fast):
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(16, _0="fault:oom>4"))
    render_loop.run()
    assert counts(database, job_id) == {"done": 16}
    assert {image.reproducibility_class.rpartition("/")[2] for image in images(database, job_id)} == {"4"}
    later = submit(database, fast, mugs(16))
    render_loop.run()
    assert {image.reproducibility_class.rpartition("/")[2] for image in images(database, later)} == {"4"}


def test_a_sick_device_fails_nothing_gives_all_back_and_stops_claiming(make_render_loop, database, fast, tmp_path):
    render_loop = make_render_loop(dataclasses.replace(fast, model_dir=str(tmp_path)))
    job_id = submit(database, fast, mugs(40))
    (tmp_path / "sick").touch()
    render_loop.run()
    assert render_loop.device.sick
    assert counts(database, job_id) == {"queued": 40}
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(attempt) FROM images")).scalar_one() == 0
    healthy = make_render_loop(worker="worker-2")
    healthy.run()
    assert counts(database, job_id) == {"done": 40}


def test_an_unreachable_store_fails_nothing_uses_no_attempt_and_stops_the_claiming(make_render_loop, database, fast):
    target = urlsplit(fast.s3_endpoint_url)
    proxy = Proxy(target.hostname, target.port)
    away = dataclasses.replace(fast, s3_endpoint_url=f"http://127.0.0.1:{proxy.port}")
    proxied = s3.S3Store(away)
    proxied.prepare()
    render_loop = make_render_loop(store=proxied)
    job_id = submit(database, fast, mugs(300))
    proxy.cut()
    worker = threading.Thread(target=render_loop.run)
    worker.start()

    def spool_is_full() -> bool:
        with database.begin_system() as connection:
            return connection.execute(text("SELECT count(*) FROM claims")).scalar_one() == fast.spool_batches

    until(spool_is_full)
    in_hand = counts(database, job_id)["rendering"]
    assert render_loop.state == "busy"
    time.sleep(fast.lease_seconds * 1.2)  # longer than a lease: the heartbeat keeps what waits in the spool
    with database.begin_system() as connection:
        counters.fold(connection)
    assert counts(database, job_id) == {"queued": 300 - in_hand, "rendering": in_hand}
    proxy.mend()
    worker.join(30)
    assert counts(database, job_id) == {"done": 300}
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(attempt), max(lost) FROM images")).one() == (0, 0)
    proxy.close()


def test_who_waits_for_its_store_before_it_claims_does_not_say_that_it_is_busy(make_render_loop, database, fast):
    """Others would leave it work that it cannot take."""
    target = urlsplit(fast.s3_endpoint_url)
    proxy = Proxy(target.hostname, target.port)
    proxied = s3.S3Store(dataclasses.replace(fast, s3_endpoint_url=f"http://127.0.0.1:{proxy.port}"))
    render_loop = make_render_loop(store=proxied)
    job_id = submit(database, fast, mugs(3))
    render_loop._storing.store_away()
    proxy.hang()
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: proxy.accepted)
    assert render_loop.busy and render_loop.state == "ready"
    proxy.mend()
    worker.join(60)
    assert counts(database, job_id) == {"done": 3} and render_loop.state == "ready"
    proxy.close()


def test_a_cancel_stops_the_running_batch_at_the_next_step(make_render_loop, database, fast):
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(16, _0="fault:slow"), num_inference_steps=50)
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, job_id) == {"rendering": 16})
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    worker.join(10)
    assert not worker.is_alive()
    assert counts(database, job_id) == {"cancelled": 16}


def test_a_warm_stop_finishes_the_batch_at_hand_and_gives_back_the_rest(make_render_loop, database, fast):
    render_loop = make_render_loop(dataclasses.replace(fast, simulated_batch_ms=500.0))
    job_id = submit(database, fast, mugs(200))
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, job_id).get("done"))
    render_loop.stopping.set()
    worker.join(10)
    found = counts(database, job_id)
    assert set(found) == {"done", "queued"}
    assert found["queued"] > 0
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(lost) FROM images")).scalar_one() == 0


@pytest.fixture
def holding(make_render_loop, fast):
    """A render loop that takes its device for fast, so that a claim holds eight batches; each takes so long. `begun`
    counts them."""

    class Counting(SimulatedPipeline):
        begun = 0

        def render(self, batch, on_step):
            self.begun += 1
            return super().render(batch, on_step)

    def make(seconds: float, **parts: object):
        slow = dataclasses.replace(fast, simulated_batch_ms=seconds * 1000)
        render_loop = make_render_loop(slow, pipeline=Counting, **parts)
        shape = Shape(simulated.REVISION, 64, 64, 10, True)
        render_loop._sizes.measured(shape, 0.5 / 128)
        render_loop._sizes.stored(shape, 128, 0.1)
        return render_loop

    return make


def test_a_fast_device_holds_several_batches_in_a_claim_and_each_image_is_rendered_once(holding, database, fast):
    render_loop = holding(0.01)
    job_id = submit(database, fast, mugs(300))
    render_loop.run()
    assert counts(database, job_id) == {"done": 300}
    with database.begin_system() as connection:
        claimed = connection.execute(text("SELECT images, state FROM claims ORDER BY id")).all()
    assert claimed[0] == (128, "settled") and sum(row.images for row in claimed) == 300
    assert {image.reproducibility_class for image in images(database, job_id)} == {
        reproducibility_class(render_loop.pipeline, 16)
    }


def test_a_cancel_stops_the_running_batch_and_releases_the_rest_of_the_claim_at_once(holding, database, fast):
    render_loop = holding(1.0)
    job_id = submit(database, fast, mugs(128))
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, job_id) == {"rendering": 128})
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    until(lambda: counts(database, job_id) == {"cancelled": 128})
    worker.join(10)
    assert render_loop.pipeline.begun < 8


def test_of_a_claim_of_two_jobs_only_what_is_cancelled_is_not_rendered(holding, database, fast):
    render_loop = holding(0.3)
    kept, dropped = submit(database, fast, mugs(40)), submit(database, fast, mugs(88))
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, dropped) == {"rendering": 88})
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, dropped)
    worker.join(10)
    assert counts(database, kept) == {"done": 40} and counts(database, dropped) == {"cancelled": 88}
    assert 3 <= render_loop.pipeline.begun < 8


def test_what_is_cancelled_of_a_claim_is_final_though_the_rest_cannot_be_stored_yet(holding, database, fast):
    answers = threading.Event()

    class Store(s3.S3Store):
        def put(self, *arguments, **options):
            answers.wait(30)
            return super().put(*arguments, **options)

    render_loop = holding(0.05, store=Store(fast))
    kept, dropped = submit(database, fast, mugs(40)), submit(database, fast, mugs(88))
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, dropped) == {"rendering": 88})
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, dropped)
    until(lambda: counts(database, dropped) == {"cancelled": 88})
    assert counts(database, kept) == {"rendering": 40}
    answers.set()
    worker.join(30)
    assert counts(database, kept) == {"done": 40} and counts(database, dropped) == {"cancelled": 88}


def test_a_warm_stop_gives_back_what_waits_in_the_claim_at_hand(holding, database, fast):
    render_loop = holding(0.5)
    job_id = submit(database, fast, mugs(128))
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, job_id) == {"rendering": 128})
    render_loop.stopping.set()
    worker.join(10)
    assert counts(database, job_id) == {"done": 16, "queued": 112}
    assert render_loop.pipeline.begun == 1
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(lost), max(attempt) FROM images")).one() == (0, 0)


def test_what_waits_in_a_claim_that_a_stop_cuts_short_has_cost_its_job_nothing(holding, database, fast):
    render_loop = holding(0.5)
    first, second = submit(database, fast, mugs(64)), submit(database, fast, mugs(64))
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, second) == {"rendering": 64})
    render_loop.stopping.set()
    worker.join(10)
    assert counts(database, second) == {"queued": 64} and counts(database, first)["done"] < 64
    with database.begin(TENANT) as connection:
        paid = [queries.job(connection, TENANT, job_id).device_seconds for job_id in (first, second)]
    assert paid[0] > 0 and paid[1] == 0


@pytest.mark.parametrize("what", ["store", "policy"])
def test_a_worker_that_stops_does_not_wait_for_an_answer_for_each_image_of_a_claim(holding, database, fast, what):
    asked = []

    def hang(error):
        asked.append(1)
        time.sleep(0.5)
        raise error

    class Store(s3.S3Store):
        def put(self, *arguments, **options):
            hang(StoreUnavailable)

    class Policy(judging.Judging):
        def refusal(self, *arguments, **options):
            while True:
                with contextlib.suppress(judging.Unjudged):
                    hang(judging.Unjudged)
                if render_loop.stopping.is_set():
                    raise judging.Unjudged

    parts = {"store": Store(fast)} if what == "store" else {"judging": Policy(fast)}
    render_loop = holding(0.01, **parts)
    job_id = submit(database, fast, mugs(128))
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: len(asked) >= 2 * storing.UPLOADS)
    render_loop.stopping.set()
    worker.join(60)
    assert counts(database, job_id) == {"queued": 128} and len(asked) <= 5 * storing.UPLOADS


def test_a_fast_device_with_a_slow_store_renders_nothing_in_vain(make_render_loop, database, fast):
    class Slow(s3.S3Store):
        def put(self, *arguments, **options):
            time.sleep(0.15)
            return super().put(*arguments, **options)

    settings = dataclasses.replace(fast, storing_seconds=3.0)
    render_loop = make_render_loop(settings, store=Slow(settings))
    job_id = submit(database, fast, mugs(300))
    render_loop.run()
    assert counts(database, job_id) == {"done": 300}
    with database.begin_system() as connection:
        held = connection.execute(text("SELECT sum(images), max(images) FROM claims")).one()
    assert held == (300, 16), "each image was claimed once"


def test_the_next_claim_is_taken_shortly_before_the_end_of_the_one_at_hand(holding, database, fast):
    """So that high which arrives while eight batches are rendered comes next."""
    render_loop = holding(0.4)
    low = submit(database, fast, mugs(400), priority="low")
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, low).get("rendering") == 128)
    high = submit(database, fast, mugs(16), priority="high")
    until(lambda: counts(database, high).get("done") == 16)
    with database.begin_system() as connection:
        claims = connection.execute(text("SELECT job_ids FROM claims ORDER BY id LIMIT 2")).scalars().all()
    assert claims == [[low], [high]], "no claim of low came between"
    render_loop.stopping.set()
    worker.join(10)


def test_a_paused_process_whose_lease_ran_out_is_fenced_and_the_winners_bytes_stay(
    make_render_loop, database, fast, store
):
    """Both render the same images; what is recorded is what is stored."""
    slow = make_render_loop(dataclasses.replace(fast, simulated_batch_ms=400.0), worker="slow")
    job_id = submit(database, fast, mugs(16))
    worker = threading.Thread(target=slow.run)
    worker.start()
    until(lambda: counts(database, job_id) == {"rendering": 16})
    with database.begin_system() as connection:
        connection.execute(text("UPDATE claims SET expires_at = now() - interval '1 hour'"))
        connection.execute(text("UPDATE images SET lost = 0"))
    with database.begin_system() as connection:
        assert expiry.expire(connection, 0.0) == 16
    make_render_loop(worker="quick").run()
    worker.join(10)
    assert counts(database, job_id) == {"done": 16}
    for image in images(database, job_id):
        assert hashlib.sha256(store.read(image.object_key)).hexdigest() == image.sha256


def test_a_second_thread_does_not_work_beside_the_first(make_render_loop, database, fast):
    render_loop = make_render_loop(dataclasses.replace(fast, simulated_batch_ms=500.0))
    job_id = submit(database, fast, mugs(16))
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, job_id) == {"rendering": 16})
    assert not render_loop.run()
    worker.join()


def test_the_next_batch_is_claimed_while_one_renders(make_render_loop, database, fast):
    render_loop = make_render_loop(dataclasses.replace(fast, simulated_batch_ms=1000.0))
    submit(database, fast, mugs(48))
    worker = threading.Thread(target=render_loop.run)
    worker.start()

    def open_claims() -> bool:
        with database.begin_system() as connection:
            return connection.execute(text("SELECT count(*) FROM claims WHERE state = 'open'")).scalar_one() >= 2

    until(open_claims, seconds=1.0)
    worker.join()


class Broken(SimulatedPipeline):
    """A device that gives nothing but NaN."""

    def render(self, batch, on_step):
        return [InvalidOutput()] * batch.size


class Full(SimulatedPipeline):
    """A device whose memory something else has taken."""

    def render(self, batch, on_step):
        raise OutOfMemory


class Odd(SimulatedPipeline):
    """Makes of one prompt a picture that no encoder takes."""

    def render(self, batch, on_step):
        pictures = list(super().render(batch, on_step))
        for slot, spec in enumerate(batch.specs):
            if "odd" in spec.prompt:
                pictures[slot] = Picture(pictures[slot].pixels[..., 0, :1, None, None])
        return pictures


class Reviewing(SimulatedPipeline):
    """Checks pictures; one cannot be checked, and for one there is no memory at first. One had a second try."""

    def __init__(self, settings):
        super().__init__(settings)
        self.full, self.odd, self.reviewers = True, {}, set()

    def render(self, batch, on_step):
        pictures = list(super().render(batch, on_step))
        for slot, spec in enumerate(batch.specs):
            if "twice" in spec.prompt:
                pictures[slot] = dataclasses.replace(pictures[slot], decoded_in="fp32")
            self.odd[pictures[slot].pixels.tobytes()] = spec.prompt
        return pictures

    def review(self, picture):
        prompt = self.odd[picture.pixels.tobytes()]
        if "mug on a table" not in prompt:  # the canary
            self.reviewers.add(threading.current_thread().name.partition("_")[0])
        if "unseen" in prompt:
            raise ValueError("no verdict")
        if "full" in prompt and self.full:
            self.full = False
            raise OutOfMemory
        return dataclasses.replace(picture, flagged="bad" in prompt)


def test_pictures_are_checked_while_they_are_stored_and_none_is_stored_unchecked(make_render_loop, database, fast):
    render_loop = make_render_loop(pipeline=Reviewing)
    job_id = submit(database, fast, mugs(6, _1="a bad mug", _2="an unseen mug", _3="a full mug", _4="a mug twice"))
    run_until(render_loop, database, job_id, {"done": 5, "failed": 1})
    assert render_loop.pipeline.reviewers == {"upload"}  # not the device's thread
    done = {image.index: image for image in images(database, job_id, ImageState.DONE)}
    assert {index: image.flagged for index, image in done.items()} == {0: False, 1: True, 3: False, 4: False, 5: False}
    assert [image.error_code for image in images(database, job_id, ImageState.FAILED)] == ["render_error"]
    assert done[4].reproducibility_class == done[3].reproducibility_class.replace("uint8", "uint8+fp32-decoder")


def run_until(render_loop, database, job_id, expected):
    """A pass ends before what it gives back is claimed again."""
    until(lambda: render_loop.run() and counts(database, job_id) == expected)


class Breaking(SimulatedPipeline):
    """A device that breaks in its second batch, while the first one's pictures are being checked."""

    def __init__(self, settings):
        super().__init__(settings)
        self.batches, self.broken = 0, threading.Event()

    def render(self, batch, on_step):
        self.batches += 1
        if self.batches > 1:
            self.broken.set()
            raise RuntimeError("an illegal memory access was encountered")
        return super().render(batch, on_step)

    def review(self, picture):
        assert self.broken.wait(60)
        raise RuntimeError("an illegal memory access was encountered")


class Blind(SimulatedPipeline):
    """A device that renders, and cannot check a picture."""

    def review(self, picture):
        raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("device", [Breaking, Blind])
def test_pictures_that_a_sick_device_cannot_check_fail_nothing_and_use_no_attempt(
    make_render_loop, database, fast, device
):
    render_loop = make_render_loop(pipeline=device)
    job_id = submit(database, fast, mugs(32))
    until(lambda: not render_loop.run() and render_loop.device.sick)
    assert counts(database, job_id) == {"queued": 32}
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(attempt) FROM images")).scalar_one() == 0


class Crowded(SimulatedPipeline):
    """Has room to check pictures only beside batches of four or less, and of one prompt never."""

    def __init__(self, settings):
        super().__init__(settings)
        self.size, self.huge = 0, set()

    def render(self, batch, on_step):
        self.size = batch.size
        pictures = super().render(batch, on_step)
        self.huge |= {pictures[n].pixels.tobytes() for n, spec in enumerate(batch.specs) if "huge" in spec.prompt}
        return pictures

    def review(self, picture):
        if self.size > 4 or picture.pixels.tobytes() in self.huge:
            raise OutOfMemory
        return dataclasses.replace(picture, flagged=False)


def test_a_shape_whose_pictures_there_is_no_room_to_check_is_rendered_in_smaller_batches(
    make_render_loop, database, fast, monkeypatch
):
    monkeypatch.setattr(storing, "REVIEW_PAUSES", (0.01,))
    render_loop = make_render_loop(pipeline=Crowded)
    job_id = submit(database, fast, mugs(16, _3="a huge mug"))
    run_until(render_loop, database, job_id, {"done": 15, "failed": 1})
    done = images(database, job_id, ImageState.DONE)
    assert {image.reproducibility_class.rpartition("/")[2] for image in done} <= {"4", "1"}
    (failed,) = images(database, job_id, ImageState.FAILED)
    assert (failed.index, failed.error_code) == (3, "resource")
    assert not render_loop.device.sick


@pytest.mark.parametrize("device", [Broken, Full])
def test_a_device_that_cannot_even_render_its_canary_fails_nothing(make_render_loop, database, fast, device):
    render_loop = make_render_loop(pipeline=device)
    job_id = submit(database, fast, mugs(48))
    render_loop.run()
    assert render_loop.device.sick
    assert counts(database, job_id) == {"queued": 48}


def test_a_picture_that_cannot_be_encoded_fails_alone(make_render_loop, database, fast):
    render_loop = make_render_loop(pipeline=Odd)
    job_id = submit(database, fast, mugs(16, _9="an odd mug"))
    render_loop.run()
    assert counts(database, job_id) == {"done": 15, "failed": 1}
    assert [image.index for image in images(database, job_id, ImageState.FAILED)] == [9]


def test_what_one_shape_has_not_another_may_have(make_render_loop, database, fast):
    """A job in front of which nothing can be had just now does not keep the device from the next one."""
    render_loop = make_render_loop()
    first = submit(database, fast, mugs(4))
    with database.begin_system() as connection:  # paused in this very moment: its segments still look open
        connection.execute(text("UPDATE jobs SET paused = true WHERE id = :id"), {"id": first})
    other = submit(database, fast, [{"prompt": "a mug", "size": "128x128"}] * 4)
    render_loop.run()
    assert counts(database, other) == {"done": 4}
    assert counts(database, first) == {"queued": 4}


def test_a_cancelled_job_ends_though_the_store_is_unreachable(make_render_loop, database, fast):
    target = urlsplit(fast.s3_endpoint_url)
    proxy = Proxy(target.hostname, target.port)
    proxied = s3.S3Store(dataclasses.replace(fast, s3_endpoint_url=f"http://127.0.0.1:{proxy.port}"))
    proxied.prepare()
    render_loop = make_render_loop(store=proxied)
    job_id = submit(database, fast, mugs(16))
    proxy.cut()
    worker = threading.Thread(target=render_loop.run)
    worker.start()
    until(lambda: counts(database, job_id) == {"rendering": 16})
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    worker.join(20)
    assert counts(database, job_id) == {"cancelled": 16}
    proxy.close()


def test_the_same_spec_gives_the_same_file_in_any_slot_of_a_halved_batch_too(make_render_loop, database, fast):
    render_loop = make_render_loop()
    rows = mugs(16)
    straight = submit(database, fast, rows)
    render_loop.run()
    turned = submit(database, fast, [*reversed(rows[:15]), {**rows[15], "prompt": "fault:raise"}])
    render_loop.run()
    one = {image.seed: (image.sha256, image.reproducibility_class) for image in images(database, straight)}
    other = {image.seed: (image.sha256, image.reproducibility_class) for image in images(database, turned)}
    del one[15], other[15]
    assert one == other


def test_every_image_has_one_object_in_the_store_and_there_is_no_other(make_render_loop, database, fast, store_admin):
    own = s3.S3Store(dataclasses.replace(store_admin, bucket="one-object"))
    render_loop = make_render_loop(dataclasses.replace(fast, bucket="one-object"), store=own)
    own.prepare()
    job_id = submit(database, fast, mugs(40))
    render_loop.run()
    keys = {entry["Key"] for entry in own._client.list_objects_v2(Bucket="one-object")["Contents"]}
    assert keys - {"probe/conditional-write"} == {image.object_key for image in images(database, job_id)}


def test_a_store_that_refuses_one_worker_for_long_gives_its_images_to_others(make_render_loop, database, fast):
    stranger = s3.S3Store(dataclasses.replace(fast, s3_secret_key="wrong"))
    stranger._conditional = True
    render_loop = make_render_loop(store=stranger)
    job_id = submit(database, fast, mugs(16))
    render_loop.run()
    assert counts(database, job_id) == {"queued": 16}
    render_loop.run()  # and it claims nothing more while it is refused
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM claims")).scalar_one() == 1
    make_render_loop(worker="worker-2").run()
    assert counts(database, job_id) == {"done": 16}


def test_a_claim_that_cannot_be_made_ready_is_let_go_and_its_images_are_rendered_once_its_lease_is_over(
    make_render_loop, database, fast, monkeypatch
):
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(2))

    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(render_loop._inputs, "fetch", no_thread)
        with pytest.raises(RuntimeError):
            render_loop.run()
    assert not render_loop.heartbeat.holds, "its lease would be extended for ever"
    with database.begin_system() as connection:
        connection.execute(text("UPDATE claims SET expires_at = now() - interval '1 second'"))
        assert expiry.expire(connection, -3600.0) == 2
    render_loop.run()
    assert counts(database, job_id) == {"done": 2}
