"""A device whose last stage runs beside the next claim: what each claim gets, and which of them is to blame."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.core.db.database import Database
from services.core.model.specs import Claim, Image, Spec
from services.core.settings import Settings
from worker.device import Device
from worker.heartbeat import Heartbeat, HeldClaim
from worker.outcome import Outcome
from worker.pipeline import Batch, DeviceSick, InvalidOutput, OnStep, OutOfMemory, Picture, reproducibility_class
from worker.pipelines.simulated import SimulatedPipeline

SETTINGS = Settings.read({"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x"})


class Staged(SimulatedPipeline):
    """Draws in two stages. `faults` has an error by stage ("begin" or "pictures") and prompt; with `beside_only`, it
    comes only while another batch is in flight. `events` tells what happened in which order."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self.events: list[str] = []
        self.faults: dict[tuple[str, str], Exception] = {}
        self.beside_only = False
        self.ready_after: int | None = None  # steps of the next batch
        self.in_flight: list[Stage] = []
        self.broken = False

    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture | InvalidOutput]:
        self.events.append(f"render {name(batch)}")
        self.fail("begin", batch)
        self.fail("pictures", batch)
        return super().render(batch, on_step)

    def begin(self, batch: Batch, on_step: OnStep) -> "Stage":
        self.events.append(f"begin {name(batch)}")
        self.fail("begin", batch)
        stage = Stage(self, batch, super().render(batch, self.counting(on_step)))
        self.in_flight.append(stage)
        return stage

    def counting(self, on_step: OnStep) -> OnStep:
        before = list(self.in_flight)

        def count(step: int) -> None:
            for stage in before:
                stage.ready = self.ready_after is not None and step >= self.ready_after
            on_step(step)

        return count

    def fail(self, stage: str, batch: Batch, *, beside: bool | None = None) -> None:
        beside = bool(self.in_flight) if beside is None else beside
        error = self.faults.get((stage, name(batch)))
        if self.broken or (error is not None and (beside or not self.beside_only)):
            raise error or RuntimeError("broken")


class Stage:
    def __init__(self, pipeline: Staged, batch: Batch, drawn: Sequence[Picture | InvalidOutput]) -> None:
        self.pipeline, self.batch, self.drawn, self.ready = pipeline, batch, drawn, False

    def pictures(self) -> Sequence[Picture | InvalidOutput]:
        others = [stage for stage in self.pipeline.in_flight if stage is not self]
        self.drop()
        self.pipeline.events.append(f"pictures {name(self.batch)}")
        self.pipeline.fail("pictures", self.batch, beside=bool(others))
        return self.drawn

    def drop(self) -> None:
        self.pipeline.in_flight.remove(self)


def name(batch: Batch) -> str:
    return batch.specs[0].prompt.removeprefix("a red mug on a table") or "canary"


class Bench:
    """A device, and what became of the claims that it was given."""

    def __init__(self, pipeline: Staged | None = None) -> None:
        self.marked: list[tuple[int, ...]] = []
        self.marked_images: list[list[int]] = []
        self.heartbeat = Heartbeat(Database(SETTINGS.database_url, application="nobody"), SETTINGS)
        self.pipeline = pipeline or Staged()
        self.device = Device(self.pipeline, self.heartbeat, "here", self.mark)
        self.found: dict[int, Outcome] = {}

    def begin(self, claim_id: int, *prompts: str, suspect: bool = False, asked: str = "") -> HeldClaim:
        specs = [Spec("simulated-1", prompt, "", 0, 64, 64, 2, 7.5) for prompt in prompts]
        images = tuple(Image(claim_id, number, 1, spec, "png") for number, spec in enumerate(specs))
        claim = Claim(claim_id, specs[0].shape, images, 30.0, suspect=suspect, reproducibility_class=asked)
        held = self.heartbeat.hold(claim)
        self.device.begin(held, self.done)
        return held

    def mark(self, *claims: tuple[int, Sequence[Image]]) -> None:
        self.marked.append(tuple(claim_id for claim_id, _ in claims))
        self.marked_images.append([image.index for _, images in claims for image in images])

    def done(self, outcome: Outcome) -> None:
        assert outcome.held.claim.id not in self.found, "told once"
        self.found[outcome.held.claim.id] = outcome

    def ends(self, claim_id: int) -> tuple[int, list[str]]:
        """How many images were rendered, and the codes of those that failed."""
        outcome = self.found[claim_id]
        return len(outcome.rendered), [one.code for one in (outcome.plan.failed if outcome.plan else ())]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_last_stage_of_a_batch_runs_beside_the_next_one(bench: Bench):
    bench.begin(1, "one")
    assert bench.found == {}
    bench.begin(2, "two", "too")
    assert list(bench.found) == [1]
    bench.device.finish()
    assert bench.pipeline.events == ["begin one", "begin two", "pictures one", "pictures two"]
    assert bench.ends(1) == (1, []) and bench.ends(2) == (2, [])
    assert [one.image.job_id for one in bench.found[2].rendered] == [2, 2]
    assert bench.marked[0] == (1,) and (1, 2) in bench.marked and bench.marked[-1] == ()
    alone = Bench()
    held = alone.heartbeat.hold(bench.found[2].held.claim)
    theirs = [one.picture.pixels.tobytes() for one in alone.device.render(held).rendered]
    assert [one.picture.pixels.tobytes() for one in bench.found[2].rendered] == theirs


def test_pictures_that_are_ready_are_handed_out_in_the_middle_of_the_next_batch(bench: Bench):
    bench.pipeline.ready_after = 1
    bench.begin(1, "one")
    seen: list[bool] = []
    beat = bench.heartbeat.on_step
    bench.heartbeat.on_step = lambda step: (seen.append(1 in bench.found), beat(step))[1]  # type: ignore[method-assign]
    bench.begin(2, "two")
    assert seen == [True, True]
    assert bench.ends(1) == (1, [])


@pytest.mark.parametrize("error", [RuntimeError("no"), OutOfMemory()])
@pytest.mark.parametrize(("stage", "prompt"), [("pictures", "one"), ("begin", "two")])
def test_what_fails_beside_another_batch_is_rendered_again_alone_and_blames_nobody(
    bench: Bench, stage: str, prompt: str, error: Exception
):
    bench.pipeline.faults[stage, prompt], bench.pipeline.beside_only = error, True
    bench.begin(1, "one")
    bench.begin(2, "two")
    bench.device.finish()
    assert bench.ends(1) == bench.ends(2) == (1, [])
    assert f"render {prompt}" in bench.pipeline.events
    assert all(one.batch_size == 16 for outcome in bench.found.values() for one in outcome.rendered)
    assert not bench.device.sick


class Crowded(Staged):
    """Has memory for one batch of `most` images beside another."""

    most = 8

    def fail(self, stage: str, batch: Batch, *, beside: bool | None = None) -> None:
        if stage == "begin" and self.in_flight and batch.size > self.most:
            raise OutOfMemory


def rendered(bench: Bench) -> list[int]:
    return [one.batch_size for number in sorted(bench.found) for one in bench.found[number].rendered]


def test_a_batch_that_fits_only_alone_is_rendered_twice_once_and_then_in_smaller_ones():
    bench = Bench(Crowded())
    for number in range(1, 7):
        bench.begin(number, str(number))
    bench.device.finish()
    assert bench.pipeline.events[:4] == ["begin 1", "begin 2", "pictures 1", "render 2"]
    assert [event for event in bench.pipeline.events if event.startswith(("begin", "render"))][3:] == [
        "begin 3", "begin 4", "begin 5", "begin 6",
    ]  # fmt: skip
    assert rendered(bench) == [16, 16, 8, 8, 8, 8]
    assert bench.device.abilities().limits() == Bench().device.abilities().limits(), "alone all sizes fit"


@pytest.mark.parametrize("asked", [True, False])
def test_where_there_is_no_smaller_batch_those_that_fit_only_alone_are_rendered_alone(asked: bool):
    bench = Bench(Crowded())
    bench.pipeline.most = 0
    if not asked:
        bench.pipeline.card = replace(bench.pipeline.card, batch_sizes=(16,))
        bench.device = Device(bench.pipeline, bench.heartbeat, "here", lambda *_claims: None)
    name_of_class = reproducibility_class(bench.pipeline, 16) if asked else ""
    for number in range(1, 5):
        bench.begin(number, str(number), asked=name_of_class)
    bench.device.finish()
    begun = [event for event in bench.pipeline.events if event.startswith(("begin", "render"))]
    assert begun == ["begin 1", "begin 2", "render 2", "render 3", "render 4"]
    assert rendered(bench) == [16] * 4


@pytest.mark.parametrize(("stage", "prompt"), [("pictures", "one"), ("begin", "two")])
def test_a_bad_prompt_fails_alone_whichever_batch_runs_beside_it(bench: Bench, stage: str, prompt: str):
    bench.pipeline.faults[stage, prompt] = RuntimeError("no")
    bench.begin(1, "one")
    bench.begin(2, "two")
    bench.device.finish()
    bad, good = (1, 2) if prompt == "one" else (2, 1)
    assert bench.ends(bad) == (0, ["render_error"])
    assert bench.ends(good) == (1, [])
    assert "render canary" in bench.pipeline.events


@pytest.mark.parametrize(("stage", "prompt"), [("pictures", "one"), ("begin", "two"), ("pictures", "two")])
def test_a_device_that_is_lost_fails_no_image_of_either_claim(bench: Bench, stage: str, prompt: str):
    bench.pipeline.faults[stage, prompt] = DeviceSick("lost")
    bench.begin(1, "one")
    bench.begin(2, "two")
    bench.device.finish()
    assert bench.device.sick
    assert bench.ends(2) == (0, [])
    assert bench.ends(1) == ((1, []) if (stage, prompt) == ("pictures", "two") else (0, []))
    assert bench.pipeline.in_flight == []


def test_a_canary_that_fails_gives_both_claims_back(bench: Bench):
    bench.begin(1, "one")
    bench.pipeline.broken = True
    bench.begin(2, "two")
    bench.device.finish()
    assert bench.device.sick
    assert bench.ends(1) == bench.ends(2) == (0, [])


def test_a_cancel_of_the_next_claim_leaves_the_pictures_of_the_one_before(bench: Bench):
    bench.begin(1, "one")
    beat = bench.heartbeat.on_step

    def cancelled(step: int) -> None:
        bench.heartbeat._rendering.cancelled = frozenset({2})  # type: ignore[union-attr]
        beat(step)

    bench.heartbeat.on_step = cancelled  # type: ignore[method-assign]
    bench.begin(2, "two")
    bench.device.finish()
    assert bench.ends(1) == (1, []) and bench.ends(2) == (0, [])
    assert bench.marked[-1] == ()


def test_nothing_is_in_flight_beside_images_that_may_have_crashed_a_process(bench: Bench):
    bench.begin(1, "one")
    bench.begin(2, "two", suspect=True)
    bench.begin(3, "three")
    bench.device.finish()
    assert bench.pipeline.events == ["begin one", "pictures one", "render two", "begin three", "pictures three"]
    assert bench.ends(1) == bench.ends(2) == bench.ends(3) == (1, [])
    alone = [claims for claims in bench.marked if 2 in claims]
    assert all(claims == (2,) for claims in alone), "a crash would be held against the other, too"


def test_the_parts_of_one_claim_overlap_too(bench: Bench):
    bench.begin(1, *(str(number) for number in range(40)))
    bench.device.finish()
    assert bench.pipeline.events == ["begin 0", "begin 16", "pictures 0", "begin 32", "pictures 16", "pictures 32"]
    assert bench.ends(1) == (40, [])
    assert [one.image.index for one in bench.found[1].rendered] == list(range(40))


def test_of_a_claim_of_several_batches_those_are_marked_that_would_die_with_the_process(bench: Bench):
    bench.begin(1, *(str(number) for number in range(40)))
    bench.device.finish()
    first, second, third = list(range(16)), list(range(16, 32)), list(range(32, 40))
    marked = [images for before, images in zip([[], *bench.marked_images], bench.marked_images, strict=False)
              if images != before]  # fmt: skip
    assert marked == [first, first + second, second + third, third, []]


def test_a_batch_that_was_done_before_the_device_is_found_sick_is_given_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    def fail(stage: str, batch: Batch, **_: object) -> None:
        if (stage, name(batch)) == ("begin", "two") and bench.pipeline.in_flight:
            raise RuntimeError("beside")
        if (stage, name(batch)) == ("pictures", "one"):
            raise DeviceSick("lost")

    monkeypatch.setattr(bench.pipeline, "fail", fail)
    bench.begin(1, "one")
    bench.begin(2, "two")
    assert "render two" in bench.pipeline.events and bench.device.sick
    assert bench.ends(1) == bench.ends(2) == (0, [])
    assert bench.marked[-1] == ()


def test_a_sick_device_that_never_ends_what_is_in_flight_is_found_to_hang(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    exits: list[int] = []
    monkeypatch.setattr(bench.heartbeat, "_exit", exits.append)
    bench.begin(1, "one")

    def hang(_stage: Stage) -> None:
        for _ in range(20):
            bench.heartbeat.watch()

    monkeypatch.setattr(Stage, "drop", hang)
    bench.pipeline.faults["begin", "two"] = DeviceSick("lost")
    bench.begin(2, "two")
    assert exits
