"""The worker as a process: Celery, its child, the wake-up, and what becomes of images when processes die."""

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from sqlalchemy import Connection, text

from services.core import broker, notify
from services.core.db.database import Database
from services.core.fleet import models, workers
from services.core.jobs import queries
from services.core.model.states import ImageState
from services.core.settings import Settings
from tests.conftest import WORKER_LEASE
from tests.factories import TENANT, submit
from tests.processes import Process
from tests.proxy import Proxy
from tests.redis_trouble import first_claim_after
from tests.waiting import until
from worker import exit_codes
from worker.child import Child
from worker.shared_memory import SharedState


def counts(database: Database, job_id: int) -> dict[str, int]:
    with database.begin(TENANT) as connection:
        found = queries.job(connection, TENANT, job_id)
    assert found is not None
    return {state: count for state, count in found.counts.items() if count}


def failed(database: Database, job_id: int) -> dict[int, str]:
    with database.begin(TENANT) as connection:
        found = queries.images(connection, TENANT, job_id, state=ImageState.FAILED, after=-1, limit=100)
    return {image.index: image.error_code for image in found}


def mugs(count: int, **at: str) -> list[dict[str, object]]:
    return [{"prompt": at.get(f"_{index}", f"mug {index}"), "size": "64x64"} for index in range(count)]


def wake_up(settings: Settings) -> None:
    assert notify.Notifier(settings.redis_url).notify_now("simulated", again=True)


def test_a_bell_starts_the_work_at_once(start, database, settings):
    start()
    began = time.monotonic()
    job_id = submit(database, settings, mugs(4))
    wake_up(settings)
    until(lambda: counts(database, job_id) == {"done": 4}, every=0.02)
    with database.begin_system() as connection:
        waited = connection.execute(text("SELECT min(extract(epoch FROM c.created_at - s.created_at)) "
                                         "FROM claims c, segments s")).scalar_one()  # fmt: skip
    assert time.monotonic() - began < 30
    assert waited < 1.9  # the timer alone looks every two seconds


def test_variables_that_were_set_for_other_programs_change_nothing(start, database, settings, tmp_path):
    nowhere, proxies = "redis://127.0.0.1:9/0", ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy")
    worker = start(
        **dict.fromkeys(proxies, "http://127.0.0.1:9"), NO_PROXY="", no_proxy="",
        AWS_PROFILE="nobody", AWS_DEFAULT_PROFILE="nobody", AWS_CONFIG_FILE=str(tmp_path),
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:9",
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path), AWS_SESSION_TOKEN="", REQUESTS_CA_BUNDLE="/nowhere",
        AWS_USE_FIPS_ENDPOINT="true",
        PGSSLMODE="verify-full", PGSERVICE="nobody", PGTARGETSESSIONATTRS="standby", PGHOSTADDR="192.0.2.1", PGPORT="9",
        PGOPTIONS="-c statement_timeout=1", PGTZ="nowhere", PGCLIENTENCODING="nonsense", PGDATESTYLE="SQL, DMY",
        CELERY_BROKER_URL=nowhere, CELERY_BROKER_READ_URL=nowhere, CELERY_BROKER_WRITE_URL=nowhere,
        CELERY_RESULT_BACKEND=nowhere,
        CELERY_CONFIG_MODULE="nowhere", CELERY_LOADER="nowhere",
    )  # fmt: skip
    job_id = submit(database, settings, mugs(4))
    wake_up(settings)
    until(lambda: counts(database, job_id) == {"done": 4}, every=0.02)
    assert first_claim_after(database, job_id) < 1.9  # the timer alone looks every two seconds
    assert "Traceback" not in worker.text()


@pytest.mark.timeout(90)
def test_a_prompt_that_kills_the_process_fails_alone_in_a_batch_of_sixteen(start, database, settings):
    start()
    job_id = submit(database, settings, mugs(16, _6="fault:kill"))
    until(lambda: counts(database, job_id) == {"done": 15, "failed": 1}, seconds=80)
    assert failed(database, job_id) == {6: "poison"}


@pytest.mark.timeout(120)
def test_of_a_claim_of_several_batches_only_the_one_that_was_rendered_is_suspect(start, database, settings):
    start()

    def one(sql: str) -> int:
        with database.begin_system() as connection:
            return connection.execute(text(sql)).scalar_one()

    while one("SELECT coalesce(max(images), 0) FROM claims") < 48:  # until it knows that its device is fast
        job_id = submit(database, settings, mugs(64))
        until(lambda job_id=job_id: counts(database, job_id) == {"done": 64})
    submit(database, settings, mugs(160, _24="fault:kill"))
    until(lambda: one("SELECT count(*) FROM claims WHERE state = 'crashed'"))
    assert one("SELECT images FROM claims WHERE state = 'crashed' ORDER BY created_at LIMIT 1") > 16
    assert one("SELECT count(*) FROM images WHERE crashes > 0") == 16
    assert one("SELECT count(*) FROM images WHERE crashes > 0 AND index BETWEEN 16 AND 31") == 16


def test_a_prompt_that_hangs_the_device_fails_alone_in_a_batch_of_sixteen(start, database, settings):
    start(PRESSWORK_LEASE_SECONDS="1")
    job_id = submit(database, settings, mugs(16, _0="fault:hang"))
    until(lambda: counts(database, job_id) == {"done": 15, "failed": 1}, seconds=110)
    assert failed(database, job_id) == {0: "poison"}


@pytest.mark.chaos
@pytest.mark.timeout(90)
def test_two_devices_convict_a_prompt_sooner_than_one(start, database, settings):
    start()
    start()
    job_id = submit(database, settings, mugs(1, _0="fault:kill"))
    until(lambda: counts(database, job_id) == {"failed": 1}, seconds=80)
    with database.begin_system() as connection:
        crashes = connection.execute(text("SELECT count(*) FROM failures WHERE code = 'crash'")).scalar_one()
    assert crashes <= 3


@pytest.mark.chaos
def test_a_device_that_kills_every_process_fails_no_image(start, database, settings, tmp_path):
    worker = start(PRESSWORK_MODEL_DIR=str(tmp_path), PRESSWORK_SICK_SECONDS="1")
    (tmp_path / "sick").touch()
    job_id = submit(database, settings, mugs(40))
    until(lambda: "device sick" in worker.text())
    until(lambda: counts(database, job_id) == {"queued": 40})
    (tmp_path / "sick").unlink()
    until(lambda: counts(database, job_id) == {"done": 40}, seconds=60)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(attempt), max(crashes) FROM images")).one() == (0, 0)


@pytest.mark.timeout(240)
def test_a_worker_that_cannot_compile_ends_with_one_sentence_and_fails_no_image(start, database, settings, tmp_path):
    (tmp_path / "uncompilable").touch()
    never = start(wait=False, PRESSWORK_MODEL_DIR=str(tmp_path))
    assert never.popen.wait(90) == exit_codes.MODEL_UNUSABLE
    assert "worker: The simulated device has no compiler." in never.text().splitlines()
    (tmp_path / "uncompilable").unlink()
    later = start(PRESSWORK_MODEL_DIR=str(tmp_path))
    (tmp_path / "uncompilable").touch()
    job_id = submit(database, settings, mugs(40))
    assert later.popen.wait(60) == exit_codes.MODEL_UNUSABLE
    assert "worker: The simulated device has no compiler." in later.text().splitlines()
    assert "device sick" not in never.text() + later.text()
    assert counts(database, job_id) == {"queued": 40}
    (tmp_path / "uncompilable").unlink()
    start(PRESSWORK_MODEL_DIR=str(tmp_path))
    until(lambda: counts(database, job_id) == {"done": 40}, seconds=60)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(attempt), max(crashes) FROM images")).one() == (0, 0)


def test_a_killed_child_gives_its_images_back_before_its_lease_is_over_and_another_takes_its_place(
    start, database, settings
):
    worker = start(PRESSWORK_LEASE_SECONDS="60", PRESSWORK_SIMULATED_BATCH_MS="300")
    job_id = submit(database, settings, mugs(100))
    until(lambda: counts(database, job_id).get("rendering"))
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    until(lambda: counts(database, job_id) == {"done": 100}, seconds=40)
    assert "child died" in worker.text()


def test_a_killed_worker_loses_nothing_once_its_leases_have_run_out(start, database, settings):
    worker = start(PRESSWORK_SIMULATED_BATCH_MS="300")
    job_id = submit(database, settings, mugs(100))
    until(lambda: counts(database, job_id).get("rendering"))
    worker.kill()
    start(wait=False)
    until(lambda: counts(database, job_id) == {"done": 100}, seconds=40)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(crashes) FROM images")).scalar_one() == 0


@pytest.mark.parametrize(
    ("notifier", "number"),
    [
        (True, signal.SIGTERM),
        pytest.param(False, signal.SIGTERM, marks=pytest.mark.chaos),
        pytest.param(True, signal.SIGINT, marks=pytest.mark.chaos),
        pytest.param(False, signal.SIGHUP, marks=pytest.mark.chaos),
    ],
)
def test_a_warm_shutdown_finishes_the_batch_and_gives_back_what_was_not_begun(
    start, database, settings, notifier, number
):
    """Whether a wake-up started the work, in the Celery task, or the timer did; and if all processes get the signal."""
    worker = start(PRESSWORK_SIMULATED_BATCH_MS="600", PRESSWORK_LEASE_SECONDS="60")
    job_id = submit(database, settings, mugs(200))
    if notifier:
        wake_up(settings)
    until(lambda: counts(database, job_id).get("done"))
    worker.signal_group(number)
    assert worker.popen.wait(90) == 0
    found = counts(database, job_id)
    assert "rendering" not in found
    assert found["done"] >= 16
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(lost) FROM images")).scalar_one() == 0
        assert connection.execute(text("SELECT count(*) FROM claims WHERE state <> 'settled'")).scalar_one() == 0
        assert connection.execute(text("SELECT DISTINCT state FROM workers")).scalars().all() == ["stopped"]


def test_a_worker_says_what_keeps_it_from_claiming(database, settings):
    shared = SharedState()
    shared.parent = os.getppid()
    child = Child(replace(settings, pipeline="simulated"), shared)
    child.start()
    child.render_loop.stopping.set()
    child.render_loop.wait_idle()
    child.render_loop._storing.store_away()
    child._beat("ready")
    with database.begin_system() as connection:
        assert [one.doing for one in workers.listed(connection)] == ["waits for the object store"]
    child.stop()


def test_a_heartbeat_under_way_does_not_overwrite_that_the_worker_has_stopped(database, settings, monkeypatch):
    shared, under_way, beat = SharedState(), threading.Event(), workers.beat
    shared.parent = os.getppid()

    def slow_beat(connection: Connection, worker_id: str, state: str, *more: Any) -> bool:
        if state != "stopped":
            under_way.set()
            time.sleep(0.5)
        return beat(connection, worker_id, state, *more)

    monkeypatch.setattr(workers, "beat", slow_beat)
    child = Child(replace(settings, pipeline="simulated"), shared)
    child.start()
    assert under_way.wait(10)
    child.stop()
    time.sleep(0.6)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT state FROM workers")).scalar_one() == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGQUIT, marks=pytest.mark.chaos)])
def test_an_impatient_end_does_not_wait_for_the_batch(start, database, settings, number):
    """Ctrl-C, pressed again and again, or the terminal's QUIT."""
    worker = start(PRESSWORK_LEASE_SECONDS="60")
    (child,) = worker.children()
    job_id = submit(database, settings, mugs(16, _3="fault:hang"))
    until(lambda: counts(database, job_id) == {"rendering": 16})
    until(lambda: worker.popen.poll() is not None or worker.signal_group(number), seconds=10)
    assert worker.popen.returncode == 128 + number
    until(lambda: not Path(f"/proc/{child}").exists())


def test_a_whole_job_is_done_with_redis_unreachable_from_the_start(start, database, settings):
    start(REDIS_URL="redis://127.0.0.1:9/0")
    job_id = submit(database, settings, mugs(60))
    until(lambda: counts(database, job_id) == {"done": 60})


def test_redis_cut_off_and_emptied_in_the_middle_costs_nothing(start, database, settings, redis_admin):
    target = urlsplit(settings.redis_url)
    proxy = Proxy(target.hostname, target.port)
    start(REDIS_URL=settings.redis_url.replace(f":{target.port}", f":{proxy.port}"), PRESSWORK_SIMULATED_BATCH_MS="100")
    job_id = submit(database, settings, mugs(300))
    wake_up(settings)
    until(lambda: counts(database, job_id).get("done"))
    proxy.cut()
    redis_admin.flushall()
    until(lambda: counts(database, job_id) == {"done": 300})
    proxy.mend()
    later = submit(database, settings, mugs(16))
    until(lambda: counts(database, later) == {"done": 16})
    proxy.close()


@pytest.mark.chaos
def test_bells_rung_many_times_render_nothing_twice(start, database, settings):
    start()
    start()
    job_id = submit(database, settings, mugs(64))
    for _ in range(30):
        wake_up(settings)
    until(lambda: counts(database, job_id) == {"done": 64})
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT sum(images) FROM claims")).scalar_one() == 64


def test_rubbish_on_the_queue_is_dropped_and_the_worker_goes_on(start, database, settings):
    worker = start()
    client = redis.Redis.from_url(settings.redis_url)
    for rubbish in (b"\x80\x04.", b"{}", b"[]", b'{"body": 1}', b"x" * 100_000):
        client.lpush(broker.queue_name("simulated"), rubbish)
    job_id = submit(database, settings, mugs(8))
    until(lambda: counts(database, job_id) == {"done": 8})
    assert worker.popen.poll() is None


def test_the_first_worker_registers_its_model_and_says_what_it_does(start, database, settings):
    start(PRESSWORK_SIMULATED_BATCH_MS="500")
    with database.begin_system() as connection:
        assert models.registry(connection)["simulated"].default_size == (512, 512)
    submit(database, settings, mugs(150))

    def said() -> workers.Worker | None:
        with database.begin_system() as connection:
            [worker] = workers.listed(connection)
        return worker if worker.batch and worker.fill else None

    until(lambda: said() is not None)
    found = said()
    assert found is not None and found.batch is not None and found.memory is not None
    assert (found.state, found.fill, found.batch.images, found.batch.of) == ("busy", 1.0, 16, 16)
    assert found.reproducibility_class.endswith("/16") and found.batch.size in found.sizes
    assert 0 < found.memory[0] < found.memory[1] and found.busy_at is not None


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("PRESSWORK_PIPELINE", "watercolour", "it can be onnx, torch, ai100 or simulated"),
        ("PRESSWORK_BATCH_SIZES", "16,x", "PRESSWORK_BATCH_SIZES is '16,x'"),
        ("DATABASE_URL", "postgresql://nobody:x@127.0.0.1:9/none", "cannot be reached"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "AWS_SECRET_ACCESS_KEY is not the secret"),
    ],
)
def test_a_bad_setting_ends_the_worker_with_one_sentence(environ, store, tmp_path, variable, value, sentence):
    worker = Process("worker.app", {**environ, variable: value}, tmp_path / "log")
    assert worker.popen.wait(90) == exit_codes.SETTINGS
    assert sentence in worker.text()
    assert "Traceback" not in worker.text()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights."""
    from worker.model.make import make

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make(folder, "tiny")
    return folder


@pytest.mark.parametrize("pipeline", ["onnx", "torch"])
def test_a_model_that_is_not_there_ends_the_worker_with_one_sentence_and_a_code_of_its_own(
    environ, store, tmp_path, pipeline
):
    model = {"PRESSWORK_PIPELINE": pipeline, "PRESSWORK_MODEL_DIR": str(tmp_path / "nowhere")}
    worker = Process("worker.app", {**environ, **model}, tmp_path / "log")
    assert worker.popen.wait(90) == exit_codes.MODEL_UNUSABLE
    (sentence,) = worker.text().splitlines()
    assert sentence.startswith("worker: The model ") and sentence.endswith(".")


@pytest.mark.timeout(150)
@pytest.mark.parametrize("pipeline", [pytest.param("onnx", marks=pytest.mark.chaos), "torch"])
def test_a_model_that_only_the_child_finds_unfit_ends_the_worker_with_one_sentence_and_that_code(
    environ, store, tiny, tmp_path, pipeline
):
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (file,) = (folder / "vae").glob("*.safetensors")
    tensors = load_file(file)
    tensors["decoder.conv_in.bias"] = tensors["decoder.conv_in.bias"][:3]
    save_file(tensors, file, metadata={"format": "pt"})
    model = {"PRESSWORK_PIPELINE": pipeline, "PRESSWORK_MODEL_DIR": str(folder)}
    worker = Process(
        "worker.app", {**environ, **model, "PRESSWORK_ARTEFACTS": str(tmp_path / "artefacts")}, tmp_path / "log"
    )
    assert worker.popen.wait(120) == exit_codes.MODEL_UNUSABLE
    (sentence,) = [line for line in worker.text().splitlines() if line.startswith("worker: ")]
    assert "vae" in sentence and "decoder.conv_in.bias is [3], not [32]" in sentence
    assert "Traceback" not in worker.text()


@pytest.mark.chaos
@pytest.mark.timeout(90)
def test_a_child_that_dies_while_redis_is_away_is_replaced(start, database, settings):
    target = urlsplit(settings.redis_url)
    proxy = Proxy(target.hostname, target.port)
    worker = start(REDIS_URL=settings.redis_url.replace(f":{target.port}", f":{proxy.port}"))
    wake_up(settings)
    (child,) = worker.children()
    proxy.cut()
    until(lambda: "redis away" in worker.text())
    os.kill(child, signal.SIGKILL)
    until(lambda: worker.children() not in ([], [child]))
    job_id = submit(database, settings, mugs(8))
    until(lambda: counts(database, job_id) == {"done": 8})
    assert worker.popen.poll() is None
    proxy.close()


@pytest.mark.timeout(90)
def test_a_child_that_dies_while_redis_was_never_reached_is_replaced_or_the_worker_ends(start, database, settings):
    """Celery cannot replace its children before its first connection; then the worker ends, to be started anew."""
    worker = start(REDIS_URL="redis://127.0.0.1:9/0")
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    until(lambda: worker.popen.poll() is not None or (worker.children() and worker.children() != [child]))
    if worker.popen.poll() is not None:
        start(REDIS_URL="redis://127.0.0.1:9/0")
    job_id = submit(database, settings, mugs(8))
    until(lambda: counts(database, job_id) == {"done": 8})


@pytest.mark.timeout(90)
def test_a_device_that_ends_every_process_ends_the_worker_and_fails_no_image(start, database, settings, tmp_path):
    worker = start(PRESSWORK_MODEL_DIR=str(tmp_path), PRESSWORK_SICK_SECONDS="0.1")
    (tmp_path / "sick-kill").touch()
    job_id = submit(database, settings, mugs(40))
    assert worker.popen.wait(60) == exit_codes.MODEL_UNUSABLE
    assert "dies before it has loaded the pipeline" in worker.text()
    (tmp_path / "sick-kill").unlink()
    start(PRESSWORK_MODEL_DIR=str(tmp_path))
    until(lambda: counts(database, job_id) == {"done": 40}, seconds=40)


@pytest.mark.timeout(90)
def test_a_database_cut_off_for_longer_than_a_lease_loses_no_work_and_uses_no_attempt(start, database, settings):
    target = urlsplit(settings.database_url)
    proxy = Proxy(target.hostname, target.port)
    start(
        DATABASE_URL=settings.database_url.replace(f":{target.port}", f":{proxy.port}"),
        PRESSWORK_SIMULATED_BATCH_MS="200",
    )
    job_id = submit(database, settings, mugs(100))
    until(lambda: counts(database, job_id).get("rendering"))
    proxy.cut()
    time.sleep(WORKER_LEASE * 1.5)
    proxy.mend()
    until(lambda: counts(database, job_id) == {"done": 100}, seconds=60)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(attempt), max(lost), max(crashes) FROM images")).one() == (0, 0, 0)
    proxy.close()


@pytest.mark.chaos
def test_what_a_killed_worker_held_is_claimed_again_within_a_lease_and_a_sweep(start, database, settings):
    worker = start(PRESSWORK_SIMULATED_BATCH_MS="500")
    job_id = submit(database, settings, mugs(16))
    until(lambda: counts(database, job_id).get("rendering"))
    start()
    worker.kill()
    until(lambda: counts(database, job_id) == {"done": 16})
    with database.begin_system() as connection:
        late = connection.execute(text(
            "SELECT extract(epoch FROM max(created_at) - min(expires_at)) FROM claims"
        )).scalar_one()  # fmt: skip
    assert late < 5.0  # the sweep; the lease itself is over at expires_at


def test_without_redis_work_begins_within_five_seconds(start, database, settings):
    start(REDIS_URL="redis://127.0.0.1:9/0")
    submit(database, settings, mugs(4))

    def waited() -> float | None:
        with database.begin_system() as connection:
            return connection.execute(text(
                "SELECT extract(epoch FROM c.created_at - s.created_at) FROM claims c, segments s"
            )).scalar_one_or_none()  # fmt: skip

    assert until(waited) < 5.0
