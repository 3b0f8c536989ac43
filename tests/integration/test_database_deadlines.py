"""A database server that hangs although its machine still acknowledges what is sent."""

import pytest
from sqlalchemy import make_url, text

from services.core.db import deadlines
from services.core.db.database import Database
from services.core.model.errors import DatabaseUnavailable
from tests.proxy import Proxy


def test_a_server_that_hangs_is_unavailable_and_its_connection_is_not_used_again(database_url):
    url = make_url(database_url)
    proxy = Proxy(url.host, url.port)
    through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
    database = Database(through, application="hanging", pool_size=1, answer_seconds=0.3)
    with pytest.raises(DatabaseUnavailable, match="no answer"), database.begin_system() as connection:
        connection.execute(text("SELECT 1"))
        proxy.hang()
        connection.execute(text("SELECT 1"))
    proxy.mend()
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    database.close()
    proxy.close()


def test_a_transaction_that_may_take_long_is_waited_for_and_only_that_one(database_url):
    database = Database(database_url, application="slow", pool_size=1, answer_seconds=0.3)
    with database.begin_system() as connection:
        deadlines.lift(connection)
        connection.execute(text("SELECT pg_sleep(0.6)"))
    with pytest.raises(DatabaseUnavailable, match="no answer"), database.begin_system() as connection:
        connection.execute(text("SELECT pg_sleep(0.6)"))
    database.close()


def test_what_a_vanished_host_has_locked_is_free_before_its_leases_are_over(database, settings):
    """Nobody tells the server that a host has gone in the middle of a heartbeat, and a locked claim is passed over."""
    limit = text("SELECT setting FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'")
    with database.begin_system() as connection:
        milliseconds = int(connection.execute(limit).scalar_one())
    assert 0 < milliseconds / 1000 <= settings.lease_seconds - settings.beat_seconds
