"""`presswork model move`: what waits for one revision is drawn by another; what was drawn keeps its own."""

import dataclasses
import json
import threading

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.fleet import models
from services.core.jobs import drafts, lifecycle, queries, submissions
from services.core.model import ids
from services.core.policy import policies
from services.core.queue import model_moves, quarantine
from tests import factories
from tests.factories import CARD, REVISION, TENANT, claim, settle, submit

NEXT = "simulated-next"


@pytest.fixture
def rolled_out(database, environ, monkeypatch):
    """Both revisions were served, the next one last."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    factories.register(database)
    return database


def serve(database, **more: object) -> None:
    factories.register(database, dataclasses.replace(CARD, revision=NEXT, **more))


def move(*arguments: str) -> tuple[int, dict[str, int]]:
    result = CliRunner().invoke(app, ["model", "move", REVISION, "simulated", *arguments, "--json"])
    assert result.exit_code in (0, 3), result.output
    return result.exit_code, json.loads(result.stdout)


def counts(database, job_id):
    with database.begin(TENANT) as connection:
        found = queries.job(connection, TENANT, job_id)
    assert sum(found.counts.values()) == found.total
    return {state: count for state, count in found.counts.items() if count}


def drawn_by(database, job_id):
    """Of each revision the images that were done in a segment of it."""
    with database.begin_system() as connection:
        rows = connection.execute(
            text("""SELECT s.model_revision AS revision, array_agg(r.index ORDER BY r.index) AS places
                    FROM results r JOIN images i USING (job_id, index)
                    JOIN segments s ON s.job_id = i.job_id AND s.id = i.segment_id
                    WHERE r.job_id = :id GROUP BY 1"""),
            {"id": job_id},
        )
        return {row.revision: row.places for row in rows}


def draw_all(database, revision):
    drawn = 0
    while taken := claim(database, revision=revision):
        assert {image.spec.model_revision for image in taken.images} == {revision}
        settle(database, taken)
        drawn += len(taken.images)
    return drawn


def test_a_job_that_has_not_begun_is_drawn_by_the_next_revision(rolled_out, settings):
    job_id = submit(rolled_out, settings, 40)
    serve(rolled_out)
    assert claim(rolled_out, revision=NEXT) is None
    assert move("--dry-run") == (0, {"from": REVISION, "to": NEXT, "jobs": 1, "images": 0, "left": 0, "rendering": 0})
    assert claim(rolled_out, revision=NEXT) is None
    assert move() == (0, {"from": REVISION, "to": NEXT, "jobs": 1, "images": 40, "left": 0, "rendering": 0})
    assert claim(rolled_out, revision=REVISION) is None
    assert draw_all(rolled_out, NEXT) == 40 and counts(rolled_out, job_id) == {"done": 40}
    with rolled_out.begin_system() as connection:
        event = connection.execute(text("SELECT actor, data FROM events WHERE kind = 'job.model_moved'")).one()
    assert event.actor.startswith("cli/") and event.data == {"images": 40, "from": REVISION, "to": NEXT}


def test_a_draft_is_moved_and_what_is_added_to_it_later_is_of_the_next_revision_by_itself(rolled_out, settings):
    def parsed(draft, number):
        with rolled_out.begin(TENANT) as connection:
            place = drafts.existing(connection, TENANT, draft, number)
            registry = models.registry(connection)
        chunk = submissions.Submission(settings, registry, policy=policies.NOTHING, existing=place)
        chunk.add(0, {"prompt": f"chunk {number}", "size": "64x64", "n": 3})
        return chunk

    def append(draft, number, chunk):
        with rolled_out.begin(TENANT) as connection:
            drafts.append(connection, TENANT, chunk, number)

    draft, racing = ids.new(), ids.new()
    for job_id in (draft, racing):
        with rolled_out.begin(TENANT) as connection:
            drafts.create(connection, TENANT, job_id, priority=1, labels={}, dedupe=False, embed_prompt=False)
        append(job_id, 0, parsed(job_id, 0))
    late = parsed(racing, 1)  # while the old revision was the newest
    serve(rolled_out)
    assert move() == (0, {"from": REVISION, "to": NEXT, "jobs": 2, "images": 6, "left": 0, "rendering": 0})
    append(draft, 1, parsed(draft, 1))
    append(racing, 1, late)
    assert claim(rolled_out, revision=NEXT) is None, "a draft is drawn by nobody"
    for job_id in (draft, racing):
        with rolled_out.begin(TENANT) as connection:
            drafts.finalize(connection, TENANT, job_id, 6)
    assert draw_all(rolled_out, NEXT) == 12 and claim(rolled_out) is None
    assert counts(rolled_out, draft) == counts(rolled_out, racing) == {"done": 6}


@pytest.mark.parametrize("at_once", [20_000, 10])
def test_what_was_drawn_keeps_its_revision_and_what_comes_back_is_moved_by_the_next_call(
    rolled_out, settings, monkeypatch, at_once
):
    monkeypatch.setattr(model_moves, "_AT_ONCE", at_once)
    job_id = submit(rolled_out, settings, 60)
    settle(rolled_out, claim(rolled_out, 16))
    held, given_back = claim(rolled_out, 8), claim(rolled_out, 4)
    serve(rolled_out)
    assert move() == (0, {"from": REVISION, "to": NEXT, "jobs": 1, "images": 32, "left": 0, "rendering": 12})
    assert settle(rolled_out, held).verdict == "ok"
    settle(rolled_out, given_back, released=factories.places(given_back))
    assert counts(rolled_out, job_id) == {"done": 24, "queued": 36}
    assert move()[1]["images"] == 4
    assert draw_all(rolled_out, NEXT) == 36 and claim(rolled_out) is None
    assert counts(rolled_out, job_id) == {"done": 60}
    assert drawn_by(rolled_out, job_id) == {REVISION: list(range(24)), NEXT: list(range(24, 60))}


def test_what_the_next_revision_cannot_draw_stays_and_is_counted(rolled_out, settings):
    fits = submit(rolled_out, settings, 2, size="64x64")
    submit(rolled_out, settings, 3, size="512x512")
    submit(rolled_out, settings, 4, size="64x64", num_inference_steps=40)
    with rolled_out.begin_system() as connection:
        asked = submit(rolled_out, settings, 5, size="64x64")
        connection.execute(
            text("UPDATE segments SET reproducibility_class = 'a class' WHERE job_id = :id"), {"id": asked}
        )
    serve(rolled_out, sizes=((64, 64),), default_size=(64, 64), max_steps=30)
    code, found = move()
    assert code == 3 and (found["jobs"], found["images"], found["left"]) == (1, 2, 3)
    assert draw_all(rolled_out, NEXT) == 2 and counts(rolled_out, fits) == {"done": 2}
    assert draw_all(rolled_out, REVISION) == 7, "those of a size and of steps that the next one has not"


def test_paused_and_quarantined_images_are_moved_as_they_are_and_those_of_a_cancelled_job_are_not(rolled_out, settings):
    paused, cancelled = submit(rolled_out, settings, 5), submit(rolled_out, settings, 6)
    suspect = submit(rolled_out, settings, 16)
    with rolled_out.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, paused=True)
        lifecycle.cancel(connection, TENANT, cancelled)
    taken = claim(rolled_out)
    with rolled_out.begin_system() as connection:
        quarantine.child_died(connection, "worker-a", rendering={taken.id: factories.places(taken)}, device="h d")
    serve(rolled_out)
    code, found = move()
    assert code == 0 and (found["jobs"], found["images"]) == (2, 21)
    first = claim(rolled_out, revision=NEXT)
    assert first.suspect and {image.job_id for image in first.images} == {suspect}
    with rolled_out.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, paused=False)
    settle(rolled_out, first)
    draw_all(rolled_out, NEXT)
    assert counts(rolled_out, paused) == {"done": 5} and counts(rolled_out, suspect) == {"done": 16}
    assert "done" not in counts(rolled_out, cancelled)


def test_images_are_moved_while_workers_of_both_revisions_claim(rolled_out, settings, monkeypatch):
    monkeypatch.setattr(model_moves, "_AT_ONCE", 40)
    jobs = [submit(rolled_out, settings, 400) for _ in range(3)]
    serve(rolled_out)
    working = threading.Event()
    working.set()
    drawn = {REVISION: 0, NEXT: 0}

    def work(revision: str) -> None:
        while working.is_set():
            if taken := claim(rolled_out, 8, worker=revision, revision=revision):
                settle(rolled_out, taken)
                drawn[revision] += len(taken.images)

    threads = [threading.Thread(target=work, args=(revision,)) for revision in drawn]
    for thread in threads:
        thread.start()
    try:
        while any("queued" in counts(rolled_out, job) or "rendering" in counts(rolled_out, job) for job in jobs):
            with rolled_out.begin_system() as connection:
                waits = REVISION in model_moves.waiting(connection)
            if waits:
                CliRunner().invoke(app, ["model", "move", REVISION, NEXT])
    finally:
        working.clear()
        for thread in threads:
            thread.join()
    assert sum(drawn.values()) == 1_200 and drawn[NEXT] > 0
    for job in jobs:
        assert counts(rolled_out, job) == {"done": 400}
        found = drawn_by(rolled_out, job)
        assert sorted(place for places in found.values() for place in places) == list(range(400))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (REVISION, "nobody", "No worker has served a model or revision 'nobody'"),
        ("another", "simulated", f"Nothing waits for the revision 'another'. Jobs wait for {REVISION} (1 jobs)."),
        (NEXT, "simulated", f"simulated is the revision {NEXT} already."),
    ],
)
def test_a_wrong_revision_is_one_sentence(rolled_out, settings, old, new, sentence):
    submit(rolled_out, settings, 1)
    serve(rolled_out)
    result = CliRunner().invoke(app, ["model", "move", old, new])
    assert result.exit_code == 2 and sentence in " ".join(result.stderr.split())
