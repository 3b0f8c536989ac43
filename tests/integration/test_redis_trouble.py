"""Redis answers, and not as it should: to Presswork it is then away, and work goes on within five seconds."""

import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from scheduler.periodic_tasks import timetable
from services.core import broker, notify
from services.core.db.connectivity import Connectivity
from services.core.jobs import lifecycle, queries
from services.core.settings import Settings
from tests.factories import TENANT, register, submit
from tests.integration.test_worker_process import counts, mugs, wake_up
from tests.proxy import Proxy
from tests.redis_server import redis_server
from tests.redis_trouble import assert_a_worker_lives_through, first_claim_after
from tests.waiting import until


@pytest.mark.timeout(90)
def test_whatever_redis_answers_the_worker_lives_and_picks_a_job_up_within_five_seconds(
    start, database, settings, tmp_path
):
    """`make chaos` tries every answer that is known."""
    with redis_server(tmp_path / "redis") as server:
        proxy = Proxy("127.0.0.1", server.port)
        worker = start(REDIS_URL=server.through(proxy.port))
        some = ["READONLY", "nonsense"]  # an error, and what is no answer
        assert_a_worker_lives_through(some, worker, database, settings, server, proxy)
        proxy.close()


def test_a_model_that_nobody_serves_has_one_wake_up_at_most_and_it_expires(database, settings, redis_admin):
    register(database)
    job_id = submit(database, settings, 3)
    notifier, client = notify.Notifier(settings.redis_url), redis_admin
    (every_five_seconds,) = [task for task in timetable(settings, notifier, Connectivity()) if task.name == "notify"]
    for _ in range(3):
        client.delete("presswork:wake-up:simulated")  # as if two seconds had passed
        with database.begin_system() as connection:
            every_five_seconds.run(connection)
        until(lambda: client.exists("presswork:wake-up:simulated"))
        until(lambda: client.llen(broker.queue_name("simulated")))
        notifier.notify_now("simulated", again=True)
        assert client.llen(broker.queue_name("simulated")) == 1
        assert 0 < client.pttl(broker.queue_name("simulated")) <= broker.EXPIRY_MILLISECONDS
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    with database.begin_system() as connection:
        assert queries.waiting_models(connection) == []
    client.delete(broker.queue_name("simulated"))


def test_what_a_wake_up_holds_is_never_read(start, database, settings, redis_admin):
    worker = start()
    children = worker.children()
    client = redis_admin
    for message in rubbish(settings, client):
        client.lpush(broker.queue_name("simulated"), message)
        until(lambda: not client.llen(broker.queue_name("simulated")))
    job_id = submit(database, settings, mugs(8))
    wake_up(settings)
    until(lambda: counts(database, job_id) == {"done": 8})
    assert first_claim_after(database, job_id) < 1.9  # the timer alone looks every two seconds
    assert worker.popen.poll() is None
    assert worker.children() == children
    assert not any(word in worker.text() for word in ("Traceback", "error", "pickle"))


class Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a pickle was loaded",)


def rubbish(settings: Settings, client: Any) -> Iterator[bytes]:
    """What is no message, and messages that ask for something."""
    yield from (
        b"",
        b"\x80\x04.",
        b"{}",
        b"[]",
        b'{"body": 1}',
        b"x" * 100_000,
        b"[" * 100_000,
        b"9" * 10_000,
        b"\xff\xfe",
    )
    yield pickle.dumps(Canary())
    notifier = notify.Notifier(settings.redis_url)
    queue = "rubbish"
    broker.send(notifier._app, queue)
    genuine = json.loads(client.rpop(broker.queue_name(queue)))
    headers: list[dict[str, object]] = [
        {"timelimit": [0.01, 0.01]},
        {"eta": "2099-01-01T00:00:00"},
        {"expires": "nonsense"},
        {"task": "celery.backend_cleanup"},
        {"task": "no.such.task"},
        {"task": None},
        {"compression": "application/x-gzip"},
        {"ignore_result": False, "errbacks": [{"task": "x"}]},
    ]
    for change in headers:
        yield json.dumps(genuine | {"headers": genuine["headers"] | change}).encode()
    for change in (
        {"headers": 5},
        {"properties": {}},
        {"content-type": "application/x-python-serialize"},
        {"body": "?"},
    ):
        yield json.dumps(genuine | change).encode()
