"""Scores: what scorers give, that one that fails fails no image, and where scores are listed, filtered and sorted."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from psycopg import ClientCursor
from pyarrow import parquet
from sqlalchemy import Connection, Engine, event, text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.db.database import Database
from services.core.jobs import scored
from services.core.model import ids, scores
from services.core.model.errors import InvalidSubmission, NotFound, SettingsError
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.factories import TENANT, submit
from tests.render_loops import counts, images, mugs
from tests.waiting import until
from tests.web import Api
from worker.scoring import Pending, Scoring

_SCORERS = """
import multiprocessing, os, pathlib, time

def fits():
    return lambda pixels, prompt: pixels.shape[0] / 64 + len(prompt) / 1000

def _badly(act):
    def score(pixels, prompt):
        number = int(prompt.rpartition(" ")[2])
        return act() if number % 2 else 0.5
    return lambda: score

def _raise():
    raise RuntimeError("no\\0\\n idea\\ud800")

raises, nan, words = _badly(_raise), _badly(lambda: float("nan")), _badly(lambda: "sharp")
hangs = _badly(lambda: time.sleep(600))

def breaks():
    acts = {"mug 1": lambda: time.sleep(600), "mug 3": lambda: os._exit(3)}
    return lambda pixels, prompt: acts.get(prompt, float)() or 0.5

def _fork():
    one = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    one.start()
    pathlib.Path(os.environ["FORKED"]).write_text(f"{one.pid}\\n")
    time.sleep(600)

forks = _badly(_fork)

def waits():
    def score(pixels, prompt):
        while not os.path.exists(os.environ["AWAITED"]):
            time.sleep(0.01)
        return 1
    return score

def prints():
    print("loading")
    return lambda pixels, prompt: print(prompt) or 1

def unready():
    raise OSError("its weights are not there")

def tells():
    return lambda pixels, prompt: int("DATABASE_URL" in os.environ or "AWS_SECRET_ACCESS_KEY" in os.environ)
"""
PIXELS = np.full((64, 64, 3), 200, np.uint8)
HASHES = (0xFFFF0000FFFF0000, 0xFFFF0000FFFF000F, 0x123456789ABCDEF, 0x0F0F0F0F0F0F0F0F)
_NAMES = ("fits", "raises", "nan", "words", "hangs", "breaks", "prints", "unready", "tells", "forks", "waits")


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with scorers, installed for this process and its children."""
    (tmp_path / "some_scorers.py").write_text(_SCORERS)
    info = tmp_path / "some_scorers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-scorers\nVersion: 1.0\n")
    lines = [f"{name} = some_scorers:{name}\n" for name in _NAMES]
    (info / "entry_points.txt").write_text("".join([f"[{scores.GROUP}]\n", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def scoring(fast: Settings) -> Iterator[Callable[..., Scoring]]:
    made: list[Scoring] = []

    def make(*names: str, seconds: float = 60) -> Scoring:
        made.append(Scoring(dataclasses.replace(fast, scorers=names, score_seconds=seconds)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_each_image_is_scored_as_it_is_stored_and_its_scores_are_shown(make_render_loop, database, fast, api: Api):
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(3, _1="fault:raise"))
    assert render_loop.run()
    shown = api.http.get(f"/v1/jobs/{ids.public_job(job_id)}/images").json()["data"]
    assert [image["status"] for image in shown] == ["done", "failed", "done"]
    for image in (shown[0], shown[2]):
        assert image["scores"].keys() == {"uniform", "sharpness"}
        assert 0 <= image["scores"]["uniform"] <= 1
        assert image["scores"]["sharpness"] > 0
        assert len(image["phash"]) == 16
    assert (shown[1]["scores"], shown[1]["phash"]) == (None, None)
    with database.begin_system() as connection:
        indexed = connection.execute(text("SELECT name, value, index FROM image_scores ORDER BY index, name")).all()
    assert [tuple(row) for row in indexed] == [
        (name, image["scores"][name], image["index"])
        for image in (shown[0], shown[2])
        for name in sorted(image["scores"])
    ]


def test_a_copied_image_has_the_scores_of_the_one_that_it_is_copied_from(make_render_loop, database, fast):
    render_loop = make_render_loop()
    first = submit(database, fast, mugs(2))
    render_loop.run()
    again = submit(database, fast, mugs(2), head={"dedupe": True})
    render_loop.run()
    ours, copied = images(database, first), images(database, again)
    assert [image.reused for image in copied] == [True, True]
    assert [(image.scores, image.phash) for image in copied] == [(image.scores, image.phash) for image in ours]
    with database.begin_system() as connection:
        rows = connection.execute(text("SELECT job_id, count(*) FROM image_scores GROUP BY job_id"))
        assert dict(map(tuple, rows)) == {first: 4, again: 4}


def test_no_scorer_need_be_chosen(make_render_loop, database, fast):
    render_loop = make_render_loop(dataclasses.replace(fast, scorers=()))
    job_id = submit(database, fast, mugs(1))
    render_loop.run()
    assert [(image.scores, image.phash) for image in images(database, job_id)] == [(None, None)]


@pytest.mark.usefixtures("brought")
def test_a_scorer_that_fails_fails_no_image_and_is_counted(make_render_loop, database, fast, scoring):
    chosen = scoring("sharpness", "fits", "raises", "nan", "words", "prints", "tells")
    render_loop = make_render_loop(scoring=chosen)
    job_id = submit(database, fast, mugs(4))
    render_loop.run()
    assert counts(database, job_id) == {"done": 4}
    for image in images(database, job_id):
        assert image.scores is not None
        expected = None if image.index % 2 else 0.5
        assert [image.scores[name] for name in ("raises", "nan", "words")] == [expected] * 3
        assert (image.scores["fits"], image.scores["prints"], image.scores["tells"]) == (1.005, 1, 0)
        assert image.phash is None
    troubles = chosen.troubles()
    assert {name: (one["failed"], one["off"]) for name, one in troubles.items()} == {
        "raises": (2, False), "nan": (2, False), "words": (2, False),
    }  # fmt: skip
    assert troubles["raises"]["why"] == "RuntimeError: no idea"
    assert troubles["nan"]["why"] == "it gave nan, which is not finite"
    assert troubles["words"]["why"] == "it gave 'sharp', which is no number"


@pytest.mark.usefixtures("brought")
def test_a_scorer_that_hangs_or_dies_so_often_in_a_row_is_left_out(scoring, monkeypatch):
    monkeypatch.setattr("worker.scoring.MOST_DEATHS", 2)
    chosen = scoring("breaks", "fits", "uniform", seconds=60)
    said = []
    for prompt, seconds in (("mug 1", 0.5), ("mug 2", 60), ("mug 3", 60), ("mug 3", 60), ("mug 3", 60)):
        chosen._seconds = seconds
        pending = chosen.begin(PIXELS, prompt)
        assert pending.future is not None
        pending.future.result()
        said.append(chosen.end(pending, lambda: False).numbers)
    assert [one["breaks"] for one in said] == [None, 0.5, None, None, None]
    assert [one["fits"] for one in said] == [None, 1.005, None, None, 1.005]  # it is asked after the one that breaks
    assert [one["uniform"] for one in said] == [1.0] * 5
    why = "its process ended with code 3"
    assert chosen.troubles() == {"breaks": {"failed": 3, "late": 0, "why": why, "off": True}}


@pytest.fixture
def forked(brought: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the scorer `forks` writes the id of the process that it started."""
    monkeypatch.setenv("FORKED", str(tmp_path / "forked"))
    return tmp_path / "forked"


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pid_in(path: Path) -> int:
    return int(until(lambda: path.exists() and path.read_text()))


def test_what_a_scorer_started_ends_with_it_and_holds_nobody_up(scoring, forked):
    chosen = scoring("forks", "fits", seconds=60)
    for prompt, seconds in (("mug 1", 0.5), ("mug 2", 60)):
        chosen._seconds = seconds
        pending = chosen.begin(PIXELS, prompt)
        assert pending.future.result(60)["forks"] == (None if prompt == "mug 1" else 0.5)
    until(lambda: not runs(pid_in(forked)))
    forked.unlink()
    pending = chosen.begin(PIXELS, "mug 1")
    pid = pid_in(forked)
    closing = threading.Thread(target=chosen.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    assert pending.future.result(30) == {"forks": None, "fits": None}
    until(lambda: not runs(pid))


def test_what_a_scorer_started_ends_with_the_worker_however_it_ends(forked):
    program = (
        "import numpy; from worker.scoring_process import ScoringProcess; "
        "scoring = ScoringProcess(['forks'], {}); scoring.wait_ready(); "
        "scoring.score(numpy.zeros((8, 8, 3), 'uint8'), 'mug 1', 600, print)"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as worker:
        pid = pid_in(forked)
        assert runs(pid)
        worker.kill()
    until(lambda: not runs(pid))


@pytest.mark.usefixtures("brought")
def test_each_scorer_has_the_seconds_for_itself(scoring, tmp_path, monkeypatch):
    monkeypatch.setenv("AWAITED", str(tmp_path / "go"))
    chosen = scoring("fits", "waits")
    now = [0.0]
    told = []

    def tell(name: str, value: float | None, why: str) -> None:
        told.append((name, value, why))
        now[0] += 100
        (tmp_path / "go").touch()

    monkeypatch.setattr("worker.scoring_process.time", SimpleNamespace(monotonic=lambda: now[0]))
    chosen._turns.submit(chosen._process.score, PIXELS, "mug 1", 60, tell).result(60)
    assert told == [("fits", 1.005, ""), ("waits", 1.0, "")]


@pytest.mark.usefixtures("brought")
def test_an_image_has_its_seconds_from_when_its_turn_comes_and_never_waits_longer_than_it_may(scoring, monkeypatch):
    chosen = scoring("fits", seconds=5)
    clock = itertools.count(step=100)
    monkeypatch.setattr("worker.scoring.time", SimpleNamespace(monotonic=lambda: float(next(clock))))

    def ended(act: Callable[[Future, int], None], **more: float) -> float | None:
        future: Future = Future()
        looks = itertools.count()

        def is_hurried() -> bool:
            act(future, next(looks))
            return False

        return chosen.end(Pending({}, future), is_hurried, **more).numbers["fits"]

    def answer(future: Future, look: int) -> None:
        if look == 3:
            future.set_running_or_notify_cancel()
            future.set_result({"fits": 1.0})

    def hang(future: Future, look: int) -> None:
        if look == 0:
            future.set_running_or_notify_cancel()

    assert ended(answer) == 1.0
    assert ended(hang) is None
    assert ended(lambda *_: None, until=next(clock) + 250.0) is None
    assert chosen.troubles()["fits"]["late"] == 2


@pytest.mark.usefixtures("brought")
def test_a_scorer_that_hangs_longer_than_uploads_may_take_ends_no_worker(make_render_loop, database, fast, scoring):
    chosen = scoring("hangs", seconds=600)
    ended: list[int] = []
    short = dataclasses.replace(fast, storing_seconds=2.5)
    render_loop = make_render_loop(short, scoring=chosen, exit_process=ended.append)
    job_id = submit(database, fast, [{**row, "prompt": "mug 1"} for row in mugs(1)])
    render_loop.run()
    render_loop.wait_idle()
    assert counts(database, job_id) == {"done": 1}
    assert (ended, chosen.troubles()["hangs"]["late"]) == ([], 1)


@pytest.mark.usefixtures("brought")
def test_a_machine_that_lets_no_process_start_fails_no_image(scoring, monkeypatch):
    chosen = scoring("fits", "uniform")
    chosen._process.end()
    chosen._process = None
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert chosen.end(chosen.begin(PIXELS, "mug 1"), lambda: False).numbers == {"fits": None, "uniform": 1.0}
    assert chosen.troubles()["fits"]["why"].startswith("FileNotFoundError: ")


@pytest.mark.usefixtures("brought")
def test_images_do_not_wait_for_a_scorer_while_the_device_would(make_render_loop, database, fast, scoring):
    chosen = scoring("hangs", "uniform", seconds=600)
    narrow = dataclasses.replace(fast, spool_batches=2, scorers=("hangs", "uniform"))
    render_loop = make_render_loop(narrow, scoring=chosen)
    job_id = submit(database, fast, [{**row, "prompt": "mug 1"} for row in mugs(40)])
    render_loop.run()
    assert counts(database, job_id) == {"done": 40}
    assert [image.scores for image in images(database, job_id)] == [
        {"hangs": None, "uniform": image.scores["uniform"]} for image in images(database, job_id)
    ]
    assert chosen.troubles()["hangs"]["late"] == 40


@pytest.mark.usefixtures("brought")
def test_a_scorer_that_cannot_be_opened_is_named_before_anything_is_rendered(scoring):
    with pytest.raises(SettingsError, match="The scorer unready cannot be opened: OSError: its weights are not there"):
        scoring("fits", "unready")
    with pytest.raises(SettingsError, match="the scorer clip needs a directory with a CLIP: it has no config"):
        scoring("clip")


def scored_job(database: Database, settings: Settings, values: list[dict[str, float | None] | None], **head) -> int:
    """A job whose image i has the scores `values[i]`."""
    factories.register(database)
    job_id = submit(database, settings, len(values), head=head)
    while taken := factories.claim(database):
        stored = [
            dataclasses.replace(one, scores=values[one.index], phash=HASHES[one.index % len(HASHES)])
            for one in factories.stored(taken)
        ]
        factories.settle(database, taken, stored=stored)
    return job_id


def values_of(count: int) -> list[dict[str, float | None] | None]:
    """Every fifth image has no score, every seventh one that failed; the others have equal ones in pairs."""
    return [
        None if nth % 5 == 4 else {"a": None if nth % 7 == 6 else (nth * 37 % count) // 2 / 10, "b": float(nth)}
        for nth in range(count)
    ]


WRONG = [
    ({"score": "a"}, "score"),
    ({"sort": "phash"}, "sort"),
    ({"score": "a>=1", "sort": "--a"}, "sort"),
    ({"score": "a>=1", "mark": "starred"}, "score"),
    ({"sort": "a", "order": "failed_first"}, "sort"),
    ({"sort": "a", "status": "failed"}, "sort"),
]


def pages(api: Api, path: str, **asked: object) -> list[dict]:
    found, cursor = [], {}
    while cursor is not None:
        answer = api.http.get(path, params={name: value for name, value in asked.items() if value} | cursor)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["data"]
        cursor = page["next_cursor"] and {"cursor": page["next_cursor"]}
    return found


def test_images_are_listed_in_the_order_of_a_score_page_by_page(database, settings, api: Api):
    values = values_of(32)
    job_id = scored_job(database, settings, values)
    for conditions, sort in [
        ([], "a"), ([], "-a"), (["a>=0.4"], None), (["a<=0.9", "a>=0.2"], "a"), (["a>=0.4", "b<=20"], "-b"),
        (["c>=0"], None), (["a>=2", "a<=1"], None),
    ]:  # fmt: skip
        wanted = scores.wanted(conditions, sort)
        assert wanted is not None
        order = wanted.order
        fits = [
            (value[order.name], nth)
            for nth, value in enumerate(values)
            if value and value.get(order.name) is not None and scores.holds(value, wanted.ranges)
        ]
        expected = [nth for _, nth in sorted(fits, reverse=order.descending)]
        for limit in (3, 100):
            asked = {"score": ",".join(conditions), "sort": sort, "limit": limit}
            listed = pages(api, f"/v1/jobs/{ids.public_job(job_id)}/images", **asked)
            assert [image["index"] for image in listed] == expected, (conditions, sort, limit)
    with database.begin(TENANT) as connection:
        assert scored.names(connection, job_id) == ["a", "b"]
    for asked, param in WRONG:
        answer = api.http.get(f"/v1/jobs/{ids.public_job(job_id)}/images", params=asked)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), asked


def test_a_page_with_ranges_of_several_scores_looks_at_so_many_images_and_says_where_it_stopped(
    database, settings, monkeypatch
):
    job_id = scored_job(database, settings, [{"a": float(nth), "b": float(nth % 10)} for nth in range(30)])
    monkeypatch.setattr(scored, "LOOKED_AT", 4)
    wanted = scores.wanted(["a>=0", "b>=8"], "a")
    assert wanted is not None
    found, places, after = [], [], None
    while True:
        with database.begin(TENANT) as connection:
            page = scored.page(connection, TENANT, job_id, wanted, after=after, limit=2)
        found += [image.index for image in page.images]
        if page.place is None:
            break
        after = page.place
        places.append(after[1])
    assert found == [8, 9, 18, 19, 28, 29]
    assert places == [3, 7, 9, 13, 17, 19, 23, 27]


@pytest.mark.parametrize("plan", ["force_generic_plan", "force_custom_plan"])
def test_a_page_begins_where_the_one_before_ended_and_looks_into_one_week_whatever_plan_it_has(
    database, settings, plan
):
    job_id = scored_job(database, settings, [{"a": float(nth // 100), "b": 1.0} for nth in range(400)])
    for conditions, sort, after, most in [
        (["a>=0"], "a", (3.0, 350), 11),
        (["a>=0"], "-a", (0.0, 50), 11),
        (["a>=0", "b>=2"], "a", (2.0, 250), 149),
    ]:
        wanted = scores.wanted(conditions, sort)
        assert wanted is not None
        with database.begin(TENANT) as connection:
            found = planned(
                connection,
                plan,
                lambda it, wanted=wanted, after=after: scored.page(it, TENANT, job_id, wanted, after=after, limit=10),
            )
        read = re.search(r"on image_scores .*actual rows=(\d+)", found)
        assert read is not None, found
        assert int(read[1]) == most, found
        assert "Rows Removed by Filter" not in found.partition("fitting")[0], found
        probes = re.findall(r"on results_.*\n(?:.*\n)*?.*Index Searches: (\d+)", found)
        assert sum(map(int, probes)) <= len(probes) + 2, found


def planned(connection: Connection, mode: str, look: Callable[[Connection], object]) -> str:
    """How the look's statement with a page of scores was done, planned in that mode."""
    sent: list[tuple[str, dict]] = []

    def note(_connection: object, _cursor: object, sql: str, values: dict, *_: object) -> None:
        if "/* scored." in sql:
            sent.append((sql, values))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        look(connection)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    ((sql, values),) = sent
    connection.exec_driver_sql(f"SET LOCAL plan_cache_mode = {mode}")
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
    names = list(values)
    numbered = sql % {name: f"${nth}" for nth, name in enumerate(names, 1)}
    connection.exec_driver_sql(f"PREPARE a_page AS {numbered}")
    given = ", ".join(f"%({name})s" for name in names)
    with ClientCursor(connection.connection.driver_connection) as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING off) EXECUTE a_page ({given})", values)
        lines = [row[0] for row in cursor.fetchall()]
    connection.exec_driver_sql("DEALLOCATE a_page")
    return "\n".join(lines)


def test_nobody_sees_scores_of_another_tenant(database, settings, api: Api):
    job_id = scored_job(database, settings, values_of(8), labels={"for": "shop"})
    other, key = api.new_tenant("other")
    headers = {"Authorization": f"Bearer {key}"}
    label = api.http.get("/v1/near-duplicates", params={"label": "for:shop"}, headers=headers).json()
    assert (label["looked_at"], label["data"]) == (0, [])
    for path in ("images?sort=a", "near-duplicates"):
        answer = api.http.get(f"/v1/jobs/{ids.public_job(job_id)}/{path}", headers=headers)
        assert answer.status_code == 404
    with database.begin(other) as connection:
        assert scored.names(connection, job_id) == []
        with pytest.raises(NotFound):
            scored.page(connection, other, job_id, scores.wanted([], "a"), after=None, limit=5)


def test_near_duplicates_are_listed_of_a_job_and_of_all_jobs_with_a_label(database, settings, api: Api):
    older = scored_job(database, settings, [None] * 6, labels={"for": "shop"})
    newer = scored_job(database, settings, [None] * 4, labels={"for": "shop"})
    scored_job(database, settings, [None] * 4, labels={"for": "blog"})
    of_job = pages(api, f"/v1/jobs/{ids.public_job(older)}/near-duplicates")
    assert [[image["index"] for image in group["images"]] for group in of_job] == [[0, 1, 4, 5]]
    exact = pages(api, f"/v1/jobs/{ids.public_job(older)}/near-duplicates", distance="0")
    assert [[image["index"] for image in group["images"]] for group in exact] == [[0, 4], [1, 5]]
    of_label = pages(api, "/v1/near-duplicates", label="for:shop")
    assert [[(image["job_id"], image["index"]) for image in group["images"]] for group in of_label] == [
        [(ids.public_job(newer), 0), (ids.public_job(newer), 1), (ids.public_job(older), 0), (ids.public_job(older), 1),
         (ids.public_job(older), 4), (ids.public_job(older), 5)],
        [(ids.public_job(newer), 2), (ids.public_job(older), 2)],
        [(ids.public_job(newer), 3), (ids.public_job(older), 3)],
    ]  # fmt: skip
    assert api.http.get(of_label[0]["images"][0]["url"]).status_code in (200, 307, 404)


def test_an_export_has_the_images_with_the_scores_or_all_with_theirs(database, settings, store, tmp_path):
    job_id = exporting.finished_job(database, settings, store)
    with database.begin_system() as connection:
        connection.execute(text("""
            UPDATE results SET phash = -1 - index, scores = CASE WHEN index < 5 THEN
              jsonb_build_object('a', CASE WHEN index = 3 THEN NULL ELSE index / 2.0 END, 'b', index % 2) END
            WHERE job_id = :id
        """), {"id": job_id})  # fmt: skip
    chosen = exporting.export(database, settings, store, job_id, "zip", scores=["a>=0.5", "b<=0.5"])
    every = exporting.export(database, settings, store, job_id, "zip")
    assert [one["index"] for one in records(database, store, chosen.id, tmp_path / "some")] == [2, 4]
    told = {one["index"]: (one["scores"], one["phash"]) for one in records(database, store, every.id, tmp_path / "all")}
    assert told[2] == ('{"a": 1.0, "b": 0}', "fffffffffffffffd")
    assert told[3][0] == '{"a": null, "b": 1}'
    assert told[5][0] == "{}"
    with pytest.raises(InvalidSubmission, match=r"scores\.0|scores"):
        exporting.order(database, job_id, "zip", scores=["a"])


def test_an_export_with_too_many_ranges_is_refused_and_one_that_was_taken_fails(database, settings, store):
    job_id = exporting.finished_job(database, settings, store)
    many = [f"{name}>=0" for name in "abcdefghi"]
    with pytest.raises(
        InvalidSubmission, match=r"options\.scores: There are filters of 9 scores; at most 8 go together"
    ):
        exporting.order(database, job_id, "zip", scores=many)
    export_id = exporting.order(database, job_id, "zip")
    with database.begin_system() as connection:
        connection.execute(
            text("UPDATE exports SET options = options || jsonb_build_object('scores', CAST(:many AS jsonb))"),
            {"many": json.dumps(many)},
        )
    exporting.run(database, settings, store)
    ended = exporting.read(database, export_id)
    assert ended is not None
    assert (ended.state, ended.error) == ("failed", "There are filters of 9 scores; at most 8 go together.")


def records(database: Database, store: S3Store, export_id: int, folder: Path) -> list[dict]:
    tree = exporting.download(database, store, export_id, folder)
    archives = sorted((tree / "data").glob("*.zip"))
    lines = [line for one in archives for line in zipfile.ZipFile(one).read("records.jsonl").splitlines()]
    return [json.loads(line) for line in lines]


def test_the_command_lists_and_downloads_by_scores(make_render_loop, database, fast, api: Api, tmp_path):
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(5))
    render_loop.run()
    job = ids.public_job(job_id)
    sharpest = sorted(images(database, job_id), key=lambda image: -image.scores["sharpness"])
    environ = {"PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key, "COLUMNS": "200"}

    def run(*words: str) -> str:
        ended = CliRunner().invoke(app, list(words), env=environ)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    listed = [json.loads(line) for line in run("images", job, "--sort", "-sharpness", "--json").splitlines()]
    assert [image["index"] for image in listed] == [image.index for image in sharpest]
    assert f"{sharpest[0].scores['sharpness']:.4g}" in run("images", job, "--score", "sharpness>=0", "--limit", "1")
    least = sharpest[1].scores["sharpness"]
    run("download", job, "-o", str(tmp_path / "some"), "--score", f"sharpness>={least!r}")
    assert len(list((tmp_path / "some").glob("*.png"))) == 2
    table = parquet.read_table(tmp_path / "some" / "metadata.parquet").to_pylist()
    assert {row["index"]: json.loads(row["scores"]) for row in table} == {
        image.index: image.scores for image in sharpest[:2]
    }
    with database.begin_system() as connection:
        connection.execute(text("UPDATE results SET phash = index / 2 WHERE job_id = :id"), {"id": job_id})
    assert run("duplicates", job, "--distance", "0").splitlines() == ["2 images: 0, 1", "2 images: 2, 3"]
    wrong = CliRunner().invoke(app, ["download", job, "--score", "sharpness"], env=environ)
    assert wrong.exit_code == 2
    assert "write NAME>=NUMBER or NAME<=NUMBER" in wrong.stderr
