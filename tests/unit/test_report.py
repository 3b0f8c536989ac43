"""What a worker says of itself with its heartbeat."""

from services.core.fleet.abilities import Abilities
from services.core.settings import Settings
from worker import report
from worker.pipeline import canary
from worker.pipelines.simulated import SimulatedPipeline

SERVERS = {"DATABASE_URL": "postgresql://h/d", "REDIS_URL": "redis://h", "AWS_ENDPOINT_URL": "http://h"}


def make(monkeypatch, memory=None):
    pipeline = SimulatedPipeline(Settings.read(SERVERS))
    monkeypatch.setattr(pipeline, "memory", lambda: memory)
    return pipeline, report.Report(pipeline, Abilities)


def test_the_batch_at_hand_has_its_step_and_is_gone_when_it_ends(monkeypatch):
    pipeline, said = make(monkeypatch)
    batch = canary(pipeline.card, 4)
    assert said.now()["batch"] is None
    said.begins(batch)
    said.on_step(3)
    size = f"{batch.shape.width}x{batch.shape.height}"
    assert said.now()["batch"] == {"images": 1, "of": 4, "size": size, "step": 3, "steps": batch.shape.steps}
    said.begins(batch)
    assert said.now()["batch"]["step"] == 0
    said.ends()
    assert said.now()["batch"] is None


def test_fill_is_that_of_the_last_minute(monkeypatch):
    _, said = make(monkeypatch)
    now = [1000.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    assert said.now()["fill"] is None
    said.rendered(16, 16)
    now[0] += 50
    said.rendered(4, 16)
    assert said.now()["fill"] == 20 / 32
    now[0] += 11
    assert said.now()["fill"] == 4 / 16
    now[0] += 50
    assert said.now()["fill"] is None


def test_memory_is_the_devices_or_else_that_of_the_process(monkeypatch):
    assert make(monkeypatch, (3, 7))[1].now()["memory"] == [3, 7]
    used, there = make(monkeypatch)[1].now()["memory"]
    assert 10 << 20 < used < there
