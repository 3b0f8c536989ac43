"""The whole worker on the stand-in of a Cloud AI 100: pictures are stored, and a lost device costs no image."""

import dataclasses
import hashlib
import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import text

from services.core.settings import Settings
from tests.factories import submit
from tests.processes import Process
from tests.render_loops import counts, images
from tests.waiting import until
from worker.model import make
from worker.pipelines import cloud_ai100
from worker.pipelines.ai100_stand_in import machine


@pytest.fixture
def on_ai100(fast, on_stand_in, tmp_path: Path) -> Settings:
    machine.reset()
    make.make(tmp_path / "tiny", "tiny")
    return dataclasses.replace(
        fast, pipeline="ai100", model_dir=str(tmp_path / "tiny"), batch_sizes=(4, 1), sizes=((64, 64),),
        artefacts=on_stand_in["PRESSWORK_ARTEFACTS"], ai100_sdk=on_stand_in["PRESSWORK_AI100_SDK"], lease_seconds=30.0,
    )  # fmt: skip


RESIDENT = "text_encoder=1,unet=11,vae_decoder=2"


@pytest.mark.parametrize("at", [9, 16])  # a step of the third batch, and the decoding of the second one beside it
def test_a_device_that_is_lost_with_two_batches_in_flight_costs_no_image(
    make_render_loop, database, on_ai100, store, monkeypatch, at
):
    """One image a batch, each decoded while the next one is denoised."""
    resident = dataclasses.replace(on_ai100, ai100_placement=RESIDENT, batch_sizes=(1,))
    render_loop = make_render_loop(resident, pipeline=cloud_ai100.open_pipeline)
    pipeline, most = render_loop.pipeline, []
    begin = pipeline.begin
    monkeypatch.setattr(
        pipeline, "begin", lambda *batch: (most.append(len(render_loop.device._open)), begin(*batch))[1]
    )
    monkeypatch.setenv("AI100_STAND_IN_FAULTS", f"lost@{at}")
    rows = [{"prompt": f"mug {seed}", "size": "64x64", "seed": seed} for seed in range(6)]
    job_id = submit(database, on_ai100, rows, model=pipeline.card.name, num_inference_steps=2)
    render_loop.run()
    assert render_loop.device.sick
    assert max(most) == 2, "nothing overlapped"
    assert counts(database, job_id).get("failed", 0) == 0
    monkeypatch.delenv("AI100_STAND_IN_FAULTS")
    machine.reset()
    well = make_render_loop(resident, worker="worker-2", pipeline=cloud_ai100.open_pipeline)
    well.run()
    assert counts(database, job_id) == {"done": 6}
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(attempt), max(crashes) FROM images")).one() == (0, 0)


def test_a_lost_device_costs_no_image_and_every_file_says_what_drew_it(
    make_render_loop, database, on_ai100, store, monkeypatch
):
    render_loop = make_render_loop(on_ai100, pipeline=cloud_ai100.open_pipeline)
    model = render_loop.pipeline.card.name
    monkeypatch.setenv("AI100_STAND_IN_FAULTS", "lost@12")
    rows = [{"prompt": "a mug", "size": "64x64", "seed": seed} for seed in range(5)]
    job_id = submit(database, on_ai100, rows, model=model, num_inference_steps=2)
    render_loop.run()
    assert render_loop.device.sick
    assert counts(database, job_id).get("failed", 0) == 0

    monkeypatch.delenv("AI100_STAND_IN_FAULTS")
    machine.reset()
    make_render_loop(on_ai100, worker="worker-2", pipeline=cloud_ai100.open_pipeline).run()
    assert counts(database, job_id) == {"done": 5}
    for image in images(database, job_id):
        assert "stand-in" in image.reproducibility_class
        assert "stand-in" in store.read(image.object_key).decode("latin-1")


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_kill_9_with_two_batches_in_flight_loses_no_image(database, on_ai100, environ, on_stand_in, store, tmp_path):
    """One image a batch: the first one is decoded while the next one is denoised, at the speed of the table."""
    settings = {
        "PRESSWORK_PIPELINE": "ai100", "PRESSWORK_DEVICE": "qaic:0", "PRESSWORK_MODEL_DIR": str(on_ai100.model_dir),
        "PRESSWORK_BATCH_SIZES": "1", "PRESSWORK_SIZES": "64x64", "PRESSWORK_AI100_PLACEMENT": RESIDENT,
        "PRESSWORK_MODEL": "tiny", "AI100_STAND_IN_SCALE": "1",
    }  # fmt: skip
    worker = Process("worker.app", {**environ, **on_stand_in, **settings}, tmp_path / "log")
    try:
        until(lambda: _one(database, "SELECT count(*) FROM workers WHERE state = 'ready'"), seconds=240)
        rows = [{"prompt": f"mug {seed}", "size": "64x64", "seed": seed} for seed in range(12)]
        job_id = submit(database, on_ai100, rows, model="tiny", num_inference_steps=8)
        until(lambda: counts(database, job_id).get("done", 0) >= 3, seconds=60, every=0.005)
        two_open = "SELECT count(*) >= 2 FROM claims WHERE state = 'open'"
        until(lambda: _one(database, two_open), seconds=30, every=0.005)
        for child in worker.children():
            os.kill(child, signal.SIGKILL)
        until(lambda: counts(database, job_id) == {"done": 12}, seconds=120)
        assert "child died" in worker.text()
        found = images(database, job_id)
        assert len({image.object_key for image in found}) == 12
        for image in found:
            assert hashlib.sha256(store.read(image.object_key)).hexdigest() == image.sha256
    finally:
        worker.stop()


def _one(database, query):
    with database.begin_system() as connection:
        return connection.execute(text(query)).scalar_one()
