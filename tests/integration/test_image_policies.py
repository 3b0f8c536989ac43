"""Policies of pictures: what is refused is not stored and never tried again, and a policy that fails loses no image."""

import dataclasses
import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from services.core.db.database import Database
from services.core.jobs import failures, retry
from services.core.model import requests
from services.core.model.errors import Conflict, SettingsError
from services.core.model.specs import Image, Spec
from services.core.model.states import ImageState
from services.core.policy import policies
from services.core.queue import counters
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.factories import TENANT, submit
from tests.render_loops import RenderLoopMaker, counts, images
from tests.waiting import until
from worker import judging
from worker.judging import Judging, Unjudged
from worker.pipeline import Batch, InvalidOutput, OnStep, Picture
from worker.pipelines.simulated import SimulatedPipeline

_POLICIES = """
import os, pathlib, time

def words():
    def judge(pixels, spec):
        print(spec["prompt"])
        assert pixels.shape[2] == 3 and spec["seed"] >= 0 and "DATABASE_URL" not in os.environ
        return "violence" if "bad" in spec["prompt"] else None
    return judge

def raises():
    def judge(pixels, spec):
        if "bad" in spec["prompt"]:
            raise RuntimeError("about " + spec["prompt"])
    return judge

def away():
    def judge(pixels, spec):
        path = pathlib.Path(os.environ["AWAY"])
        if path.exists():
            path.write_text("asked")
            os._exit(3)
    return judge

def back():
    away = [True]
    def judge(pixels, spec):
        if not spec["prompt"]:
            away.clear()
        if away:
            raise RuntimeError("away")
    return judge

def hangs():
    return lambda pixels, spec: time.sleep(600)

def unready():
    raise OSError("no weights")
"""


@pytest.fixture(autouse=True)
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with policies, installed for this process and its children."""
    (tmp_path / "picture_policies.py").write_text(_POLICIES)
    info = tmp_path / "picture_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: picture-policies\nVersion: 1.0\n")
    lines = [f"{name} = picture_policies:{name}\n" for name in ("words", "raises", "away", "back", "hangs", "unready")]
    (info / "entry_points.txt").write_text("".join([f"[{judging.GROUP}]\n", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("AWAY", str(tmp_path / "away"))


@pytest.fixture
def judged() -> Iterator[list[Judging]]:
    made: list[Judging] = []
    yield made
    for one in made:
        one.close()


def causes(database: Database, job_id: int) -> dict[str, int]:
    with database.begin_system() as connection:
        counters.fold(connection)
        return {cause.code: cause.images for cause in failures.of_job(connection, TENANT, job_id)}


def asked(*prompts: str) -> list[dict[str, object]]:
    return [{"prompt": prompt, "size": "64x64"} for prompt in prompts]


def test_a_refused_picture_is_not_stored_is_counted_and_is_never_tried_again(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, store: S3Store, judged: list[Judging]
) -> None:
    strict = dataclasses.replace(fast, image_policies=("words",))
    judged.append(Judging(strict))
    loop = make_render_loop(strict, judging=judged[0])
    job = submit(database, fast, asked("a mug", "a bad mug", "a hat"))
    loop.run()
    assert counts(database, job) == {"done": 2, "failed": 1}
    [failed] = images(database, job, ImageState.FAILED)
    assert (failed.index, failed.error_code) == (1, "content_policy")
    assert causes(database, job) == {"content_policy": 1}
    kept = [image.object_key for image in images(database, job, ImageState.DONE)]
    assert len(kept) == 2
    exporting.finish(database, job)
    with database.begin(TENANT) as connection, pytest.raises(Conflict, match="content policy"):
        retry.retry(connection, TENANT, job, requests.RetryOptions(), policy=policies.NOTHING)


@pytest.mark.parametrize(("given", "done"), [("1", 2), ("refuse", 1)])
def test_what_the_models_checker_flags_is_refused_where_the_settings_ask(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, given: str, done: int
) -> None:
    settings = dataclasses.replace(fast, safety_checker={"1": "flag"}.get(given, given))
    loop = make_render_loop(settings)
    job = submit(database, fast, asked("a mug", "a mug fault:flag"))
    loop.run()
    assert counts(database, job).get("done") == done
    assert causes(database, job) == ({} if done == 2 else {"safety_checker": 1})


def test_a_picture_at_which_a_policy_always_fails_fails_alone(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, judged: list[Judging],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    strict = dataclasses.replace(fast, image_policies=("raises",))
    judged.append(Judging(strict))
    loop = make_render_loop(strict, judging=judged[0])
    job = submit(database, fast, asked("a mug", "a bad quotedmarker"))
    loop.run()
    assert counts(database, job)["done"] == 1
    assert causes(database, job) == {"policy_failed": 1}
    assert "image policy failed" in caplog.text
    assert all("quotedmarker" not in json.dumps(record.__dict__, default=str) for record in caplog.records)


def test_while_a_policy_is_away_no_image_fails_and_none_is_stored(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, judged: list[Judging], tmp_path: Path
) -> None:
    strict = dataclasses.replace(fast, image_policies=("away",))
    judged.append(Judging(strict))
    loop = make_render_loop(strict, judging=judged[0])
    (tmp_path / "away").touch()
    job = submit(database, fast, asked("a mug"))
    running = threading.Thread(target=loop.run)
    running.start()
    until(lambda: (tmp_path / "away").read_text() == "asked")
    assert counts(database, job) == {"rendering": 1}
    (tmp_path / "away").unlink()
    running.join()
    assert counts(database, job)["done"] == 1
    assert causes(database, job) == {}


class Counting(SimulatedPipeline):
    """Counts its batches."""

    batches = 0

    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture | InvalidOutput]:
        self.batches += 1
        return super().render(batch, on_step)


def test_while_a_policy_is_away_nothing_is_claimed_and_the_worker_says_so(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, judged: list[Judging], tmp_path: Path
) -> None:
    strict = dataclasses.replace(fast, image_policies=("away",), storing_seconds=0.5)
    judged.append(Judging(strict))
    loop = make_render_loop(strict, judging=judged[0], pipeline=Counting)
    (tmp_path / "away").touch()
    job = submit(database, fast, asked(*map(str, range(80))))
    for _ in range(2):
        loop.run()
        assert loop.trouble == "waits for a content policy (away: its process ended with code 3)"
        assert loop.pipeline.batches <= strict.spool_batches, "images are rendered in vain"
        assert counts(database, job) == {"queued": 80}
    (tmp_path / "away").unlink()
    loop.run()
    assert loop.trouble == ""
    assert counts(database, job) == {"done": 80}


def test_no_image_fails_for_an_outage_that_ends_while_the_plain_picture_is_judged(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, judged: list[Judging]
) -> None:
    strict = dataclasses.replace(fast, image_policies=("back",))
    judged.append(Judging(strict))
    loop = make_render_loop(strict, judging=judged[0])
    job = submit(database, fast, asked("a mug"))
    loop.run()
    assert causes(database, job) == {}
    assert counts(database, job)["done"] == 1


def test_a_verdict_is_waited_for_no_longer_than_storing_may_take(fast: Settings, judged: list[Judging]) -> None:
    judged.append(Judging(dataclasses.replace(fast, image_policies=("hangs",), policy_seconds=500)))
    spec = Spec("simulated-1", "a mug", "", 0, 64, 64, 2, 7.5)
    picture, found = Picture(np.zeros((64, 64, 3), np.uint8)), threading.Event()

    def ask() -> None:
        with pytest.raises(Unjudged):
            judged[0].refusal(Image(1, 0, 1, spec, "png"), picture, lambda: False, until=time.monotonic() + 0.5)
        found.set()

    for _ in range(2):  # the second one waits for its turn
        threading.Thread(target=ask, daemon=True).start()
        assert found.wait(60)
        found.clear()


def test_with_accept_what_cannot_be_judged_in_time_is_stored(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, judged: list[Judging]
) -> None:
    lenient = dataclasses.replace(fast, image_policies=("hangs",), policy_seconds=0.3, policy_fault="accept")
    judged.append(Judging(lenient))
    loop = make_render_loop(lenient, judging=judged[0])
    job = submit(database, fast, asked("a mug"))
    loop.run()
    assert counts(database, job)["done"] == 1


@pytest.mark.parametrize("names", [("words", "raises"), ("raises", "words"), ("words", "hangs"), ("hangs", "words")])
def test_with_accept_what_one_policy_refuses_is_refused_although_another_fails(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, judged: list[Judging],
    names: tuple[str, ...],
) -> None:  # fmt: skip
    lenient = dataclasses.replace(fast, image_policies=names, policy_seconds=2.0, policy_fault="accept")
    judged.append(Judging(lenient))
    loop = make_render_loop(lenient, judging=judged[0])
    job = submit(database, fast, asked("a bad mug"))
    loop.run()
    assert counts(database, job) == {"failed": 1}
    assert causes(database, job) == {"content_policy": 1}


def test_a_machine_that_lets_no_process_start_releases_the_picture(
    fast: Settings, judged: list[Judging], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    judging_here = Judging(dataclasses.replace(fast, image_policies=("words",)))
    judged.append(judging_here)
    judging_here._processes["words"].end()
    monkeypatch.setattr(judging, "ScoringProcess", full)
    spec = Spec("simulated-1", "a mug", "", 0, 64, 64, 2, 7.5)
    picture = Picture(np.zeros((64, 64, 3), np.uint8))
    for _ in range(2):
        with pytest.raises(Unjudged):
            judging_here.refusal(Image(1, 0, 1, spec, "png"), picture, lambda: False, until=time.monotonic() + 30)


def test_a_policy_that_is_not_there_or_does_not_open_stops_the_start(fast: Settings) -> None:
    with pytest.raises(SettingsError, match=r"names 'nobody', and no such policy is installed"):
        Judging(dataclasses.replace(fast, image_policies=("nobody",)))
    with pytest.raises(SettingsError, match=r"cannot be opened: unready: it raised OSError"):
        Judging(dataclasses.replace(fast, image_policies=("unready",)))


def test_reuse_takes_no_flagged_picture_where_they_are_refused(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings
) -> None:
    one = {"prompt": "a mug fault:flag", "size": "64x64", "seed": 7}
    loop = make_render_loop(dataclasses.replace(fast, safety_checker="flag"))
    first = submit(database, fast, [one])
    loop.run()
    assert counts(database, first)["done"] == 1
    second = submit(database, fast, [one], head={"dedupe": True})
    make_render_loop(dataclasses.replace(fast, safety_checker="refuse")).run()
    assert counts(database, second)["failed"] == 1
    assert factories.claim(database) is None
