"""Long prompts from the door to the claim: images of one length share a batch, and short ones are what they were."""

import dataclasses

import pytest
from sqlalchemy import text

from services.core.fleet import models, throughput
from services.core.jobs import lanes
from services.core.model.long_prompts import describe
from services.core.model.specs import Shape
from services.core.queue import claims, looks
from tests import factories

REVISION = "long-test"
WORDS = "ab ab ab ab ab "  # each word is one token


@pytest.fixture
def long_model(database):
    card = dataclasses.replace(factories.CARD, revision=REVISION, long_prompts=describe(5, [("a", "b</w>")]))
    factories.register(database, card)


def taken(database, seats=16):
    with database.begin_system() as connection:
        chosen = looks.candidates(connection, REVISION, 1, "worker-a")
        while not (claim := claims.claim(connection, chosen, worker_id="worker-a", seats=seats, lease=30.0)):
            chosen = chosen.others
        return claim


@pytest.mark.usefixtures("long_model")
def test_images_share_a_batch_with_those_whose_prompts_are_as_long(database, settings):
    rows = [{"prompt": WORDS * n, "negative_prompt": negative} for n, negative in
            ((1, ""), (2, ""), (1, ""), (1, WORDS * 2), (9, ""))]  # fmt: skip
    job = factories.submit(database, settings, rows)
    factories.submit(database, settings, [{"prompt": WORDS * 2}])
    found = [taken(database) for _ in range(3)]
    assert [(claim.shape.prompt_chunks, [image.index for image in claim.images]) for claim in found] == [
        (1, [0, 2]), (2, [1, 3, 0]), (4, [4]),
    ]  # fmt: skip
    assert all(image.spec.shape == claim.shape for claim in found for image in claim.images)
    short = found[0].images[0].spec
    assert short == dataclasses.replace(short, prompt_chunks=1)
    assert "prompt_chunks" not in short.canonical() and found[1].images[0].spec.canonical()["prompt_chunks"] == 2
    assert job == found[0].images[0].job_id


@pytest.mark.usefixtures("long_model")
def test_a_negative_prompt_counts_only_where_there_is_guidance(database, settings):
    factories.submit(database, settings, [{"prompt": "ab", "negative_prompt": WORDS * 3, "guidance_scale": 1}])
    assert taken(database).shape.prompt_chunks == 1


@pytest.mark.usefixtures("long_model")
def test_a_model_that_no_longer_reads_long_prompts_cuts_them(database, settings):
    factories.register(database, dataclasses.replace(factories.CARD, revision=REVISION))
    factories.submit(database, settings, [{"prompt": WORDS * 3}])
    assert taken(database).shape.prompt_chunks == 1
    with database.begin_system() as connection:
        assert models.registry(connection)["simulated"].long_prompts is None


@pytest.mark.usefixtures("long_model")
def test_as_many_models_as_there_are_read_long_prompts(database, monkeypatch):
    monkeypatch.setattr(models, "_MOST_KEPT", 1)
    monkeypatch.setattr(models, "_counters", {})
    for number in range(3):
        fields = {"name": f"long-{number}", "revision": f"long-{number}", "long_prompts": describe(5, [])}
        factories.register(database, dataclasses.replace(factories.CARD, **fields))
        with database.begin_system() as connection:
            found = models.registry(connection)
        assert [name for name, model in found.items() if model.long_prompts is None] == []


@pytest.mark.usefixtures("long_model")
def test_the_time_of_long_prompts_is_measured_with_that_of_short_ones_and_their_lanes_are_apart(database, settings):
    factories.submit(database, settings, [{"prompt": WORDS}, {"prompt": WORDS * 3}])
    with database.begin_system() as connection:
        for chunks in (1, 3):
            shape = Shape(REVISION, 512, 512, 10, True, chunks)
            throughput.record(connection, shape, "h d", images=16, seconds_per_image=0.5)
        assert connection.execute(text("SELECT count(*) FROM render_rates")).scalar_one() == 1
        found = lanes.waiting(connection, factories.TENANT, all_tenants=False).lanes
    assert [(lane.shape.prompt_chunks, lane.images, lane.device_seconds) for lane in found] == [
        (1, 1, 0.5),
        (3, 1, 0.5),
    ]
