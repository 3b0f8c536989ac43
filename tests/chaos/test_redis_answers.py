"""Every error that Redis is known to answer with, one after another."""

import pytest

from tests.proxy import Proxy
from tests.redis_server import ANSWERS, TROUBLES, redis_server
from tests.redis_trouble import assert_a_worker_lives_through


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_worker_lives_through_every_answer(start, database, settings, tmp_path):
    with redis_server(tmp_path / "redis") as server:
        proxy = Proxy("127.0.0.1", server.port)
        worker = start(REDIS_URL=server.through(proxy.port))
        assert_a_worker_lives_through([*TROUBLES, *ANSWERS], worker, database, settings, server, proxy)
        proxy.close()
