"""How many statements the hot paths send: each is a round trip that every claim, settle and submit pays for."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, event, text

from services.core.jobs import queries
from services.core.model.specs import FailedImage
from tests import factories
from tests.factories import submit


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that are sent meanwhile, over all connections, without BEGIN and COMMIT. COPY goes past SQLAlchemy
    and is not among them."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "sessions.open" not in statement:
            sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_submit_sends_eight_statements_however_many_images_it_has(database, settings):
    factories.register(database)
    for images in (1, 500):
        with counted() as sent:
            submit(database, settings, images)
        assert len(sent) == 8, sent  # the models, job, counters, segments, timeout, two partitions, admission


def test_a_claim_sends_two_statements_and_a_settle_three_and_one_more_with_failures(database, settings):
    factories.register(database)
    submit(database, settings, 40)
    with counted() as sent:
        first = factories.claim(database)
    assert len(sent) == 3, sent  # the candidates, the locks of their jobs, the claim
    with counted() as sent:
        factories.settle(database, first)
    assert len(sent) == 3, sent
    second = factories.claim(database)
    done, failed = factories.stored(second)[1:], second.images[0]
    with counted() as sent:
        factories.settle(
            database, second, stored=done, failed=[FailedImage(failed.job_id, failed.index, "error", "It broke.")]
        )
    assert len(sent) == 4, sent


def test_the_database_shows_a_statement_by_its_name(database, settings):
    factories.register(database)
    job_id = submit(database, settings, 1)
    with database.begin_system() as connection, database.begin_system() as watcher:
        queries.models_of(connection, job_id)
        pid = connection.connection.driver_connection.info.backend_pid
        shown = watcher.execute(text("SELECT query FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}).scalar_one()
    assert "/* queries.models_of */" in shown[:60]
