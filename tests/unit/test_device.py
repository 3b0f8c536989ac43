"""The device in this process: which sizes fit its memory, and what it counts as its own failure."""

import dataclasses
import itertools
import threading

import pytest

from services.core.db.database import Database
from services.core.model.errors import SettingsError
from services.core.model.specs import Claim, Image, Shape, Spec
from services.core.settings import Settings
from worker.batch_sizes import REGROW_BATCHES
from worker.device import Device
from worker.heartbeat import SILENCE_FACTOR, Heartbeat
from worker.outcome import Outcome
from worker.pipeline import CompileFailed, DeviceSick, OutOfMemory, canary
from worker.pipelines.simulated import SimulatedPipeline

SETTINGS = Settings.read({"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x"})
SPEC = Spec("simulated-1", "a mug", "", 0, 64, 64, 2, 7.5)


class Fussy(SimulatedPipeline):
    """Has memory for `most` images, and cannot be made ready for a `refused` shape, for the reason `refusal`."""

    most = 16
    refused: Shape | None = None
    refusal: Exception = OSError("No space left on device")

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def prepare(self, shape: Shape, size: int) -> None:
        self.threads.add(threading.current_thread().name)
        if shape == self.refused:
            raise self.refusal

    def render(self, batch, on_step):
        self.threads.add(threading.current_thread().name)
        self.asked.append(batch.size)
        if batch.size > self.most:
            raise OutOfMemory
        return super().render(batch, on_step)


@pytest.fixture
def heartbeat() -> Heartbeat:
    return Heartbeat(Database(SETTINGS.database_url, application="nobody"), SETTINGS)


@pytest.fixture
def device(heartbeat: Heartbeat) -> Device:
    return Device(Fussy(), heartbeat, "here", lambda *claim_ids: None)


def render(device: Device, images: int = 16, spec: Spec = SPEC) -> Outcome:
    claim = Claim(1, spec.shape, tuple(Image(1, n, 1, spec, "png") for n in range(images)), 30.0)
    return device.render(device.heartbeat.hold(claim))


def test_a_size_that_did_not_fit_is_tried_again_after_many_good_batches_and_then_not_for_as_many(device: Device):
    device.pipeline.most = 8
    for _ in range(3 * REGROW_BATCHES):
        assert len(render(device, 8).rendered) == 8
    failed = [number for number, size in enumerate(device.pipeline.asked) if size == 16]
    assert len(failed) == 3
    assert all(later - earlier > REGROW_BATCHES for earlier, later in itertools.pairwise(failed))


def test_a_device_that_has_room_again_grows_again(device: Device):
    device.pipeline.most = 8
    render(device, 8)
    device.pipeline.most = 16
    for _ in range(REGROW_BATCHES + 2):
        render(device, 8)
    assert device.pipeline.asked[-1] == 16


def test_a_shape_that_cannot_be_made_ready_fails_no_prompt(device: Device):
    device.pipeline.refused = SPEC.shape
    outcome = render(device)
    assert device.sick
    assert outcome.plan is not None and outcome.plan.failed == []
    assert outcome.rendered == []


@pytest.mark.parametrize("refusal", [CompileFailed("no compiler"), SettingsError("The folder is full.")])
def test_a_shape_that_cannot_be_compiled_blames_neither_a_prompt_nor_the_device(device: Device, refusal: Exception):
    device.pipeline.refused, device.pipeline.refusal = SPEC.shape, refusal
    outcome = render(device)
    assert (device.sick, device.unusable, device.usable) == (False, str(refusal), False)
    assert outcome.plan is not None and outcome.plan.failed == []
    assert outcome.rendered == []


class Forgetful(Fussy):
    """Compiles again in the middle of its `last` render, and fails at it."""

    last = 0

    def render(self, batch, on_step):
        if len(self.asked) == self.last:
            raise CompileFailed("no compiler")
        return super().render(batch, on_step)


def test_what_was_rendered_before_a_compiler_failed_is_kept_and_the_rest_is_given_back(heartbeat: Heartbeat):
    device = Device(Forgetful(), heartbeat, "here", lambda *claim_ids: None)
    device.pipeline.last = 2
    outcome = render(device, 48)
    assert len(outcome.rendered) == 32
    assert outcome.plan is not None and outcome.plan.failed == []
    assert (device.sick, device.unusable) == (False, "no compiler")


@pytest.mark.parametrize("where", ["prepare", "render"])
def test_a_canary_that_cannot_be_compiled_shows_no_sick_device(heartbeat: Heartbeat, where: str):
    device = Device(Forgetful() if where == "render" else Fussy(), heartbeat, "here", lambda *claim_ids: None)
    if where == "prepare":
        device.pipeline.refusal, device.pipeline.refused = CompileFailed("no compiler"), canary(Fussy().card, 1).shape
    with pytest.raises(CompileFailed, match="no compiler"):
        device.check()


def test_the_canary_is_rendered_at_the_largest_size_that_there_is_room_for(device: Device):
    device.pipeline.most = 4
    device.check()
    assert device.pipeline.asked == [16, 8, 4]
    device.pipeline.most = 0
    with pytest.raises(DeviceSick):
        device.check()


def test_everything_runs_on_the_devices_own_thread(device: Device):
    device.check()
    render(device)
    assert len(device.pipeline.threads) == 1
    assert threading.current_thread().name not in device.pipeline.threads


def test_a_slow_device_that_passed_its_canary_is_not_taken_for_hung(heartbeat: Heartbeat):
    slow = dataclasses.replace(SETTINGS, lease_seconds=0.02, simulated_step_ms=100.0)
    heartbeat = Heartbeat(Database(SETTINGS.database_url, application="nobody"), slow)
    pipeline = SimulatedPipeline(slow)
    Device(pipeline, heartbeat, "here", lambda *claim_ids: None).check()
    assert heartbeat._usual_timeout >= SILENCE_FACTOR * 0.1 > slow.watchdog_seconds
    assert heartbeat._timeout == heartbeat._usual_timeout
