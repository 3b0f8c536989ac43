"""What a worker has to live through: a Redis that answers with one error after another."""

from collections.abc import Sequence

from sqlalchemy import text

from services.core import notify
from services.core.db.database import Database
from services.core.jobs import queries
from services.core.settings import Settings
from tests.factories import TENANT, submit
from tests.processes import Process
from tests.proxy import Proxy
from tests.redis_server import ANSWERS, TROUBLES, RedisServer
from tests.waiting import until


def assert_a_worker_lives_through(
    troubles: Sequence[str], worker: Process, database: Database, settings: Settings, server: RedisServer, proxy: Proxy
) -> None:
    """The worker reaches the server through the proxy. Asserts for each trouble that neither the worker nor its child
    ends, that a job is picked up within five seconds, and afterwards that wake-ups arrive again."""
    url, children = server.through(proxy.port), worker.children()
    for trouble in troubles:
        begin, end = TROUBLES.get(trouble, (lambda _server: None, lambda _server: None))
        begin(server)
        proxy.answer = ANSWERS.get(trouble, b"")
        assert trouble == "WRONGTYPE" or not notify.redis_answers(url), trouble
        assert first_claim_after(database, _work(database, settings, url)) < 5.0, trouble
        assert (worker.popen.poll(), worker.children()) == (None, children), trouble
        end(server)
        proxy.answer = b""
        assert notify.redis_answers(url), trouble
    until(
        lambda: first_claim_after(database, _work(database, settings, url)) < 1.0
    )  # the timer looks every two seconds
    assert "Traceback" not in worker.text()


def first_claim_after(database: Database, job_id: int) -> float:
    """How many seconds the job waited for its first claim."""
    with database.begin_system() as connection:
        waited = connection.execute(
            text(
                "SELECT extract(epoch FROM min(r.created_at) - j.created_at) FROM jobs j JOIN claims r "
                "ON r.created_at >= j.created_at WHERE j.id = :job GROUP BY j.id, j.created_at"
            ),
            {"job": job_id},
        ).scalar_one()
    return float(waited)


def _work(database: Database, settings: Settings, url: str) -> int:
    """A job, from its wake-up to its end."""
    job_id = submit(database, settings, [{"prompt": "a mug", "size": "64x64"}])
    notify.Notifier(url).notify_now("simulated", again=True)

    def done() -> bool:
        with database.begin(TENANT) as connection:
            found = queries.job(connection, TENANT, job_id)
        return found is not None and found.counts["done"] == 1

    until(done)
    return job_id
