"""Marks: what people say of pictures; where they show, and that they are counted right."""

import json
import threading
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import text

from services.core.db import actors
from services.core.db.database import Database
from services.core.exports import options, task
from services.core.marks import marks
from services.core.marks.asked import MARKS
from services.core.marks.marks import Changed
from services.core.model import ids
from services.core.model.errors import Conflict, DatabaseUnavailable, InvalidSubmission, NotFound
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.factories import TENANT, claim, submit
from tests.web import Api


@pytest.fixture
def ready(database: Database) -> Database:
    factories.register(database)
    return database


def done(database: Database, settings, images: int) -> int:
    """A job with that many done images and one that waits."""
    job_id = submit(database, settings, images + 1)
    left = images
    while left:
        taken = claim(database, min(left, 16))
        factories.settle(database, taken)
        left -= len(taken.images)
    return job_id


def put(database: Database, job_id: int, indexes: list[int], mark: str | None, actor: str = "key/a") -> Changed:
    with actors.acting(actor), database.begin(TENANT) as connection:
        return marks.put(connection, TENANT, job_id, indexes, mark)


def listed(
    database: Database, job_id: int, mark: str | None = None
) -> tuple[dict[str, int], list[tuple[int, str, str]]]:
    with database.begin(TENANT) as connection:
        counts, found = marks.listed(connection, TENANT, job_id, mark=mark, after=-1, limit=1000)
    return counts, [(one.index, one.mark, one.actor) for one in found]


def test_a_mark_is_set_changed_and_removed_and_the_counts_follow(ready, settings):
    job_id = done(ready, settings, 8)
    assert put(ready, job_id, [0, 1, 2, 2], "accepted") == Changed(3, 3)
    assert put(ready, job_id, [2, 3], "starred", "key/b") == Changed(2, 2)
    assert put(ready, job_id, [0, 5], None) == Changed(2, 1)
    counts, found = listed(ready, job_id)
    assert counts == {"accepted": 1, "rejected": 0, "starred": 2}
    assert found == [(1, "accepted", "key/a"), (2, "starred", "key/b"), (3, "starred", "key/b")]
    assert listed(ready, job_id, "starred")[1] == found[1:]


def test_the_same_mark_again_changes_neither_who_set_it_nor_when(ready, settings):
    job_id = done(ready, settings, 2)
    put(ready, job_id, [0, 1], "accepted")
    with ready.begin_system() as connection:
        before = connection.execute(text("SELECT at FROM marks ORDER BY index")).scalars().all()
    assert put(ready, job_id, [0, 1], "accepted", "key/b") == Changed(2, 0)
    with ready.begin_system() as connection:
        assert connection.execute(text("SELECT at FROM marks ORDER BY index")).scalars().all() == before
        events = connection.execute(text("SELECT actor, data FROM events WHERE kind = 'job.marked'"))
        assert [tuple(event) for event in events] == [("key/a", {"mark": "accepted", "images": 2})]
    assert listed(ready, job_id)[1] == [(0, "accepted", "key/a"), (1, "accepted", "key/a")]


def test_what_is_no_done_image_of_the_job_is_named_and_nothing_is_marked(ready, settings):
    job_id = done(ready, settings, 4)
    with pytest.raises(InvalidSubmission) as caught:
        put(ready, job_id, [0, 4, 99], "accepted")
    assert [problem.message for problem in caught.value.problems] == [
        "The job has no done image 4.",
        "The job has no done image 99.",
    ]
    assert listed(ready, job_id) == ({"accepted": 0, "rejected": 0, "starred": 0}, [])
    for begin in (lambda: ready.begin(TENANT + 1), ready.begin_system):  # the second shows all tenants' rows
        with begin() as connection:
            for wrong in (
                lambda: marks.put(connection, TENANT + 1, job_id, [0], "accepted"),
                lambda: marks.put_matching(connection, TENANT + 1, job_id, "accepted"),
                lambda: marks.counts(connection, TENANT + 1, job_id),
            ):
                with pytest.raises(NotFound):
                    wrong()


def test_a_job_has_its_own_images_and_marks_alone(ready, settings):
    small, large = done(ready, settings, 3), done(ready, settings, 6)
    put(ready, small, [0, 1], "accepted")
    put(ready, large, [0, 1, 2, 3], "accepted")
    put(ready, small, [0], None)
    put(ready, small, [1], "rejected")
    assert listed(ready, small) == ({"accepted": 0, "rejected": 1, "starred": 0}, [(1, "rejected", "key/a")])
    assert listed(ready, large)[0] == {"accepted": 4, "rejected": 0, "starred": 0}
    assert len(listed(ready, large)[1]) == 4
    with pytest.raises(InvalidSubmission, match="no done image 4"):
        put(ready, small, [4], "accepted")
    with ready.begin(TENANT) as connection:
        assert marks.put_matching(connection, TENANT, small, "starred", which="accepted") == Changed(0, 0)
        for after, reached in ((-1, 0), (0, 1), (1, 2)):
            found = marks.put_matching(connection, TENANT, small, "starred", most=1, after=after)
            assert found == Changed(1, 1, reached)
        assert marks.put_matching(connection, TENANT, small, "starred", most=1, after=2) == Changed(1, 1, None)
        accepted, starred = (1 + MARKS.index(mark) for mark in ("accepted", "starred"))
        assert marks.packed(connection, small, 0, 5) == bytes([starred] * 4 + [0])
        assert marks.packed(connection, large, 2, 5) == bytes([accepted, accepted, 0])
        assert marks.packed(connection, large, 1, 3) == bytes([accepted, accepted])
        with pytest.raises(NotFound):
            marks.put(connection, TENANT, large + 1, [0], "accepted")


def test_a_mark_that_is_changed_says_when(ready, settings):
    job_id = done(ready, settings, 1)
    put(ready, job_id, [0], "accepted")
    with ready.begin_system() as connection:
        connection.execute(text("UPDATE marks SET at = now() - interval '1 day'"))
    put(ready, job_id, [0], "rejected")
    with ready.begin_system() as connection:
        assert connection.execute(text("SELECT at > now() - interval '1 hour' FROM marks")).scalar_one()


def test_the_first_twenty_images_that_there_are_not_are_named(ready, settings):
    job_id = done(ready, settings, 1)
    for missing, more in ((20, False), (21, True)):
        with pytest.raises(InvalidSubmission) as caught:
            put(ready, job_id, list(range(10, 10 + missing)), "accepted")
        assert (len(caught.value.problems), caught.value.more) == (20, more)


def test_a_job_is_not_deleted_while_its_images_are_marked(ready, settings):
    job_id = done(ready, settings, 1)
    with ready.begin(TENANT) as marking:
        marks.put(marking, TENANT, job_id, [0], "accepted")
        with pytest.raises(DatabaseUnavailable, match="lock timeout"), ready.begin_system() as deleting:
            deleting.execute(text("SET LOCAL lock_timeout = '100ms'"))
            deleting.execute(text("UPDATE jobs SET deleted_at = now() WHERE id = :id"), {"id": job_id})


def test_a_job_without_done_images_has_nothing_that_matches(ready, settings):
    job_id = submit(ready, settings, 1)
    with ready.begin(TENANT) as connection:
        assert marks.put_matching(connection, TENANT, job_id, "accepted") == Changed(0, 0)


def test_an_image_that_no_checker_saw_is_not_flagged(ready, settings):
    job_id = done(ready, settings, 2)
    with ready.begin(TENANT) as connection:
        assert marks.put_matching(connection, TENANT, job_id, "accepted", flagged=True) == Changed(0, 0)
        assert marks.put_matching(connection, TENANT, job_id, "accepted", flagged=False) == Changed(2, 2)


def test_all_that_match_are_marked_part_by_part(ready, settings):
    job_id = done(ready, settings, 10)
    put(ready, job_id, [1, 4], "rejected")
    with ready.begin_system() as connection:
        connection.execute(text("UPDATE results SET flagged = (index = 7) WHERE job_id = :id"), {"id": job_id})

    def every(mark: str | None, **which: object) -> list[Changed]:
        parts, after = [], -1
        while after is not None:
            with ready.begin(TENANT) as connection:
                parts.append(marks.put_matching(
                    connection, TENANT, job_id, mark, after=after, most=4, **which
                ))  # fmt: skip
            after = parts[-1].reached
        return parts

    assert every("accepted", which="none", flagged=False) == [Changed(3, 3, 3), Changed(2, 2, 7), Changed(2, 2, None)]
    assert listed(ready, job_id)[0] == {"accepted": 7, "rejected": 2, "starred": 0}
    assert sum(part.changed for part in every(None, which="accepted")) == 7
    assert sum(part.changed for part in every("starred")) == 10
    assert listed(ready, job_id)[0] == {"accepted": 0, "rejected": 0, "starred": 10}


def test_marks_set_at_the_same_time_are_counted_right(ready, settings):
    job_id = done(ready, settings, 16)

    def work(mark: str) -> None:
        for _ in range(5):
            put(ready, job_id, list(range(16)), mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (*MARKS, "accepted")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts, found = listed(ready, job_id)
    assert sum(counts.values()) == len(found) == 16
    assert counts[found[0][1]] == 16


def test_the_api_takes_marks_shows_them_and_lists_by_them(api: Api, settings):
    job = ids.public_job(done(api.database, settings, 4))
    address = f"/v1/jobs/{job}/marks"
    answer = api.http.put(address, json={"mark": "accepted", "indexes": [1, 3]})
    assert answer.json() == {"object": "job.marks", "matched": 2, "changed": 2, "next_cursor": None}
    assert api.http.put(address, json={"mark": "rejected", "matching": {"mark": "none"}}).json()["changed"] == 2
    shown = api.http.get(f"{address}?mark=accepted&limit=1").json()
    assert shown["counts"] == {"accepted": 2, "rejected": 2, "starred": 0}
    assert [(one["index"], one["mark"], one["by"]) for one in shown["data"]] == [
        (1, "accepted", f"key/{api.key.split('_')[1]}")
    ]
    rest = api.http.get(f"{address}?mark=accepted&limit=1&cursor={shown['next_cursor']}").json()
    assert ([one["index"] for one in rest["data"]], rest["next_cursor"]) == ([3], None)
    images = api.http.get(f"/v1/jobs/{job}/images?mark=accepted").json()["data"]
    assert [(image["index"], image["mark"]) for image in images] == [(1, "accepted"), (3, "accepted")]
    requests = api.http.get(f"/v1/jobs/{job}/requests").json()["data"]
    assert sorted(str(image["mark"]) for request in requests for image in request["images"]) == [
        "None", "accepted", "accepted", "rejected", "rejected",
    ]  # fmt: skip
    _, key = api.new_tenant("other")
    strange = {"Authorization": f"Bearer {key}"}
    assert api.http.get(address, headers=strange).status_code == 404
    assert api.http.put(address, json={"mark": "none", "matching": {}}, headers=strange).status_code == 404


REFUSED = (
    ({"mark": "accepted"}, "Give either indexes or matching"),
    ({"mark": "accepted", "indexes": [0], "matching": {}}, "Give either indexes or matching"),
    ({"mark": "good", "indexes": [0]}, 'mark is "good"; it must be one of accepted'),
    ({"indexes": [0]}, "mark is missing"),
    ({"mark": "accepted", "indexes": []}, "indexes is"),
    ({"mark": "accepted", "indexes": [-1]}, "indexes.0 is -1"),
    ({"mark": "accepted", "indexes": [7]}, "The job has no done image 7."),
    ({"mark": "accepted", "matching": {"state": "done"}}, "There is no"),
    ({"mark": "accepted", "matching": {}, "cursor": "x"}, "cursor must be"),
)


def test_a_body_that_names_no_images_is_refused_with_what_would_do(api: Api, settings):
    job = ids.public_job(done(api.database, settings, 1))
    for body, said in REFUSED:
        refused = api.http.put(f"/v1/jobs/{job}/marks", json=body)
        assert refused.status_code in (400, 422), body
        assert said in refused.json()["error"]["message"]


def rows(database: Database, store: S3Store, export_id: int, folder: Path) -> list[tuple[int, str]]:
    """The index and mark of each image of a zip."""
    tree = exporting.download(database, store, export_id, folder)
    with zipfile.ZipFile(tree / "data/train-00000-of-00001.zip") as archive:
        lines = archive.read("records.jsonl").decode().splitlines()
    return [(line["index"], line["mark"]) for line in map(json.loads, lines)]


def test_an_export_has_the_images_with_a_mark_or_all_with_theirs(database, settings, store, tmp_path):
    job_id = exporting.finished_job(database, settings, store)
    with pytest.raises(Conflict, match="No image of the job is accepted"):
        exporting.order(database, job_id, "zip", mark="accepted")
    put(database, job_id, [0, 2], "accepted")
    put(database, job_id, [1], "starred")
    some = exporting.export(database, settings, store, job_id, "zip", mark="accepted")
    assert rows(database, store, some.id, tmp_path / "some") == [(0, "accepted"), (2, "accepted")]
    every = dict(rows(database, store, exporting.export(database, settings, store, job_id, "zip").id, tmp_path / "all"))
    assert [every[index] for index in range(4)] == ["accepted", "starred", "accepted", ""]


def test_marks_that_change_while_an_export_is_written_do_not_change_it(
    database, settings, store, tmp_path, monkeypatch
):
    job_id = exporting.finished_job(database, settings, store)
    put(database, job_id, [0, 2], "accepted")
    export_id = exporting.order(database, job_id, "zip", mark="accepted")
    monkeypatch.setattr(task, "SLICE_SECONDS", -1.0)  # one step at a time: first the plan
    exporting.run_once(database, settings, store)
    planned = exporting.read(database, export_id)
    assert planned is not None and planned.plan is not None and planned.next_shard == 0
    put(database, job_id, [0], None)
    put(database, job_id, [1, 3], "accepted")
    exporting.run(database, settings, store)
    assert rows(database, store, export_id, tmp_path) == [(0, "accepted"), (2, "accepted")]


def test_the_key_of_an_export_without_a_mark_is_as_it_was_before_there_were_marks():
    plain = options.parse({"format": "zip"})
    assert plain.digest(7).hex() == "10b8da33be822d94436166e56753b0500ee24e124cfd4d7f4c6e48462cc84da7"
    assert options.parse({"format": "zip", "options": {"mark": None}}).digest(7) == plain.digest(7)
    assert options.parse({"format": "zip", "options": {"mark": "accepted"}}).digest(7) != plain.digest(7)
