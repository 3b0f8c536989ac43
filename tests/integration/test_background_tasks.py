"""Background tasks: each is done once, late holders change nothing, and failing ones do not delay others."""

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import text

from scheduler import app
from scheduler.background_tasks import THREADS, BackgroundTask, BackgroundTaskRunner, background_tasks
from services.core.batches import batch_jobs, finalization
from services.core.db import turns
from services.core.db.database import Database
from services.core.db.leases import Lease, LeaseLost
from services.core.db.turns import Waiting
from services.core.exports import exports
from services.core.files import files, uploads
from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.notify import Notifier
from services.core.queue import counters
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import factories
from tests.waiting import until
from tests.web import Api

if TYPE_CHECKING:
    from collections.abc import Callable

ENDPOINT = "/v1/images/generations"


@pytest.fixture
def running(database: Database, settings: Settings, store: S3Store) -> BackgroundTaskRunner:
    return BackgroundTaskRunner(
        database, background_tasks(settings, store, Notifier(settings.redis_url)), "scheduler-1"
    )


def start(api: Api, *bodies: dict[str, Any]) -> str:
    """A batch of these requests; its id."""
    lines = ({"custom_id": f"r{number}", "method": "POST", "url": ENDPOINT, "body": {"size": "64x64", **body}}
             for number, body in enumerate(bodies))  # fmt: skip
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = api.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", data)}).json()
    asked = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    return str(api.http.post("/v1/batches", json=asked).json()["id"])


def number(batch: str) -> int:
    return ids.parse_job("job_" + batch.removeprefix("batch_"))


def rendered(api: Api) -> None:
    while (claim := factories.claim(api.database)) is not None:
        factories.settle(api.database, claim)
    with api.database.begin_system() as connection:
        counters.fold(connection)


def test_closing_a_job_a_second_time_leaves_its_files_as_they_are(api, running, database, settings, store):
    batch = start(api, {"prompt": "a mug"})
    running.run_once()
    rendered(api)
    with database.begin_system() as connection:
        lifecycle.finish(connection)
        assert [item.id for item in finalization.pending(connection)] == [number(batch)]
    running.run_once()
    late = Lease(database, f"close/{number(batch)}", "scheduler-2")  # had seen it among what waits
    assert late.take()
    finalization.run(settings, store, number(batch), late)
    shown = api.http.get(f"/v1/batches/{batch}").json()
    assert shown["status"] == "completed"
    assert [file["id"] for file in api.http.get("/v1/files?purpose=batch_output").json()["data"]] == [
        shown["output_file_id"]
    ]


def test_things_that_always_go_wrong_do_not_keep_others_waiting(database):
    waiting, done = list(range(30)), []

    def run(thing: int, _lease: Lease) -> None:
        if thing < 25:
            raise RuntimeError("always")
        waiting.remove(thing)
        done.append(thing)

    def pending(_connection: Any, excluding: Any = (), _busy: Any = ()) -> list[Waiting]:
        return [Waiting(thing, 1) for thing in waiting if thing not in excluding][:10]

    busy = BackgroundTaskRunner(database, [BackgroundTask("odd", pending, run)], "scheduler-1")
    for _ in range(4):
        busy.run_once()
    assert done == [25, 26, 27, 28, 29]


def test_what_goes_wrong_again_and_again_is_tried_ever_more_seldom_and_what_went_well_is_forgotten(database):
    broken = [True]

    def run(_thing: int, _lease: object) -> None:
        if broken[0]:
            raise ValueError("nobody foresaw this")

    background_task = BackgroundTask(
        "break", lambda _connection, excluding, _busy: [] if 1 in excluding else [Waiting(1, 1)], run
    )
    running = BackgroundTaskRunner(database, [background_task], "here")
    pauses = []
    for _ in range(9):
        running.run_once()
        pauses.append(round(running._not_before["break", 1] - time.monotonic()))
        running._not_before.clear()
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    broken[0] = False
    running.run_once()
    assert not running._pauses


def test_validation_and_closing_look_past_what_is_put_off(api, database):
    batches = [number(start(api, {"prompt": "a mug"})) for _ in range(12)]
    with database.begin_system() as connection:
        assert [item.id for item in batch_jobs.validating(connection)] == batches[:10]
        assert [item.id for item in batch_jobs.validating(connection, excluding=batches[:10])] == batches[10:]


def test_a_tenant_with_many_files_keeps_no_other_waiting(api, database):
    batches = [number(start(api, {"prompt": "a mug"})) for _ in range(12)]
    _, key = api.new_tenant("other")
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}) as http:
        late = number(start(dataclasses.replace(api, http=http), {"prompt": "a mug"}))
    with database.begin_system() as connection:
        found = [item.id for item in batch_jobs.validating(connection)]
    assert set(found[:2]) == {batches[0], late}
    assert found[2:] == batches[1:10]


def test_background_tasks_go_on_after_an_unexpected_error(database, monkeypatch):
    monkeypatch.setattr("scheduler.background_tasks.PAUSE_SECONDS", 0.2)
    looked, done, stopping = [], [], threading.Event()

    def broken(_connection: Any, _excluding: Any = (), _busy: Any = ()) -> list[Waiting]:
        looked.append(1)
        raise RuntimeError("unforeseen")

    def fine(_connection: Any, _excluding: Any = (), _busy: Any = ()) -> list[Waiting]:
        return [] if done else [Waiting(7, 1)]

    both = [
        BackgroundTask("broken", broken, print),
        BackgroundTask("fine", fine, lambda thing, _lease: done.append(thing)),
    ]
    thread = threading.Thread(target=BackgroundTaskRunner(database, both, "scheduler-1").run, args=(stopping,))
    thread.start()
    try:
        until(lambda: len(looked) > 1 and done)
    finally:
        stopping.set()
        thread.join()
    assert done == [7]


def test_a_job_validated_after_its_priority_was_changed_has_the_new_one(api, running, database, monkeypatch):
    batch = start(api, {"prompt": "a mug"})
    read: Callable[..., Any] = batch_jobs.source

    def source(connection: Any, job_id: int) -> Any:
        row = read(connection, job_id)
        answer = api.http.patch(f"/v1/jobs/{ids.public_job(job_id)}", json={"priority": "high"})
        assert answer.status_code == 200
        return row

    monkeypatch.setattr(batch_jobs, "source", source)  # the change comes while the file is read
    running.run_once()
    with database.begin_system() as connection:
        priorities = connection.execute(
            text(
                "SELECT j.state, j.priority, s.priority FROM jobs j JOIN segments s ON s.job_id = j.id WHERE j.id = :id"
            ),
            {"id": number(batch)},
        ).all()
    assert [tuple(row) for row in priorities] == [("queued", 0, 0)]


def test_an_upload_that_is_open_after_all_keeps_its_parts(api, database, store):
    made = api.http.post(
        "/v1/uploads", json={"filename": "a", "purpose": "batch", "bytes": 3, "mime_type": "text/plain"}
    ).json()
    part = api.http.post(f"/v1/uploads/{made['id']}/parts", files={"data": ("a", b"abc")}).json()
    upload = uploads.parse_id(made["id"])
    lease = Lease(database, f"drop-upload/{upload}", "scheduler-1")  # it seemed out of time; the clock was set back
    assert lease.take()
    uploads.drop(store, upload, lease)
    done = api.http.post(f"/v1/uploads/{made['id']}/complete", json={"part_ids": [part["id"]]})
    assert (done.status_code, done.json()["status"]) == (200, "completed")


def test_what_is_refused_leaves_no_object(api, store):
    made = api.http.post(
        "/v1/uploads", json={"filename": "a", "purpose": "batch", "bytes": 3, "mime_type": "text/plain"}
    ).json()
    before = set(store.under("files/"))
    api.http.post(f"/v1/uploads/{made['id']}/cancel")
    late = api.http.post(f"/v1/uploads/{made['id']}/parts", files={"data": ("a", b"abc")})
    assert late.status_code == 409
    assert set(store.under("files/")) == before

    def send(data: bytes) -> int:
        answer = api.http.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", data)}, headers={"Idempotency-Key": "k"}
        )
        return answer.status_code

    assert send(b"one") == 200
    stored = set(store.under("files/"))
    assert send(b"two") == 422
    assert set(store.under("files/")) == stored


def test_a_scheduler_that_fails_ends_with_its_background_tasks(environ, store, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def broken(_scheduler: Any, _stopping: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(app.Scheduler, "run", broken)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(RuntimeError, match="unforeseen"):
        app.main([])
    assert not [thread for thread in threading.enumerate() if thread.name == "background-tasks"]


def test_a_file_that_expires_is_kept_until_its_job_has_read_it(api, running, database):
    batch = start(api, {"prompt": "a mug"})
    with database.begin_system() as connection:
        connection.execute(text("UPDATE files SET expires_at = now() - interval '1 second'"))
        assert files.doomed(connection) == []
    running.run_once()
    assert api.http.get(f"/v1/batches/{batch}").json()["status"] == "in_progress"
    with database.begin_system() as connection:  # the same round, once it was read
        assert connection.execute(text("SELECT count(*) FROM files")).scalar_one() == 0


def test_a_lease_that_ends_later_than_any_can_is_free(database):
    """The database's clock was ahead when it was taken, and has been set back."""
    first, second = (Lease(database, "thing", name, 5.0) for name in ("first", "second"))
    assert first.take()
    assert not second.take()
    with database.begin_system() as connection:
        connection.execute(text("UPDATE leases SET expires_at = expires_at + interval '1 day'"))
    assert second.take()
    with pytest.raises(LeaseLost), first.begin():
        pass


def test_nobody_waits_for_a_holder_who_is_long_at_a_transaction(database):
    first, second = (Lease(database, "validate/1", holder) for holder in ("scheduler-1", "scheduler-2"))
    assert first.take()
    with first.begin():
        assert not second.take()  # at once, where a lock would be waited for until it times out
    first.release()
    assert second.take()


def test_a_lease_that_was_lost_and_taken_again_under_the_same_name_is_not_the_same_lease(database):
    """A process that slept has the holder's name and an old epoch; who works by now must not be joined by it."""
    slept, other, awake = (Lease(database, "thing", name, 5.0) for name in ("first", "second", "first"))
    for lease in (slept, other, awake):
        assert lease.take()
        with database.begin_system() as connection:
            connection.execute(text("UPDATE leases SET expires_at = clock_timestamp() - interval '1 second'"))
    with pytest.raises(LeaseLost), slept.begin():
        pass
    with awake.begin():
        pass


class Tasks:
    """Background tasks whose items wait until they are let go."""

    def __init__(self, *kinds: str, items: int = 120) -> None:
        self.waiting = {kind: [Waiting(100 + nth, 1) for nth in range(items)] for kind in kinds}
        self.began: list[tuple[str, int]] = []
        self.gate = threading.Event()
        self.tasks = [BackgroundTask(kind, partial(self._pending, kind), partial(self._run, kind)) for kind in kinds]

    def _pending(self, kind: str, _connection: Any, excluding: Any, busy: Any) -> list[Waiting]:
        """As the queries do: the first of each tenant, then the second."""
        mine = [item for item in self.waiting[kind] if item.id not in excluding and item.tenant_id not in busy]
        before = Counter[int]()
        ranked = []
        for item in mine:
            ranked.append((before[item.tenant_id], item))
            before[item.tenant_id] += 1
        return [item for _, item in sorted(ranked)][:50]

    def _run(self, kind: str, item: int, _lease: Lease) -> None:
        self.began.append((kind, item))
        assert self.gate.wait(20)
        self.waiting[kind] = [other for other in self.waiting[kind] if other.id != item]

    @contextmanager
    def running(self, database: Database) -> Iterator[None]:
        stopping = threading.Event()
        runner = BackgroundTaskRunner(database, self.tasks, "scheduler-1")
        threads = [threading.Thread(target=runner.run, args=(stopping,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopping.set()
            self.gate.set()
            for thread in threads:
                thread.join()


def test_tasks_and_tenants_take_turns(database):
    tasks = Tasks("export", "close", items=10)
    tasks.gate.set()
    tasks.waiting["export"].append(Waiting(7, 2))
    BackgroundTaskRunner(database, tasks.tasks, "scheduler-1").run_once()
    kinds = [kind for kind, _ in tasks.began]
    assert kinds[:20] == ["export", "close"] * 10
    assert tasks.began.index(("export", 7)) <= 2, "the second tenant's turn came after one item of the first"
    assert len(tasks.began) == 21


def test_a_tenant_whose_tasks_take_long_leaves_threads_to_others(database):
    tasks = Tasks("export", "close", "validate")
    with tasks.running(database):
        until(lambda: len(tasks.began) == THREADS - 2)
        kinds = Counter(kind for kind, _ in tasks.began)
        assert max(kinds.values()) == THREADS // 2 - 1, "no task took all of them"
        tasks.waiting["export"].append(Waiting(7, 2))
        until(lambda: ("export", 7) in tasks.began)
        assert len(tasks.began) == THREADS - 1


def test_the_first_export_of_each_tenant_comes_before_the_second_of_any(database, settings):
    factories.register(database)
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
    first, second = factories.submit(database, settings), factories.submit(database, settings, tenant=2)
    with database.begin_system() as connection:
        connection.execute(
            text("INSERT INTO exports (id, tenant_id, job_id, format)"
                 " SELECT nth, 1, :job, 'zip' FROM generate_series(1, 120) AS nth"), {"job": first},
        )  # fmt: skip
        connection.execute(
            text("INSERT INTO exports (id, tenant_id, job_id, format) VALUES (121, 2, :job, 'zip')"), {"job": second}
        )
        found = exports.pending(connection)
        assert {item.tenant_id for item in found[:2]} == {1, 2}
        assert Waiting(121, 2) in found[:2]
        assert {item.tenant_id for item in exports.pending(connection, busy=[1])} == {2}
        assert len(found) == turns.FIRST + 1
