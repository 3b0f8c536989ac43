"""The storing stage gives up in time: whatever a store does, no image stays `rendering` after the fault has ended."""

import dataclasses
import socket
import threading

from services.core.storage.s3 import S3Store
from tests.factories import submit
from tests.peers import hanging
from tests.render_loops import counts, mugs
from tests.waiting import until
from worker import exit_codes


def test_what_a_hanging_store_did_not_take_is_released_and_rendered_when_it_answers(
    make_render_loop, database, fast, store
):
    """The uploads end at their deadline; nothing is claimed until the store answers, and no attempt is used."""
    short = dataclasses.replace(fast, store_seconds=0.2, storing_seconds=0.3)
    with hanging("head") as address:
        own = S3Store(dataclasses.replace(short, s3_endpoint_url=address))
        own._conditional = True
        render_loop = make_render_loop(short, store=own)
        job_id = submit(database, fast, mugs(20))
        render_loop.run()
        assert counts(database, job_id) == {"queued": 20}
    make_render_loop(worker="worker-2").run()
    assert counts(database, job_id) == {"done": 20}


def test_a_thread_that_hangs_beyond_every_deadline_is_left_behind_with_its_process(
    make_render_loop, database, fast, store, monkeypatch
):
    """A name that is never resolved: no socket exists yet whose deadline could end the wait."""
    resolve, answered, exits = socket.getaddrinfo, threading.Event(), []

    def stuck(host, *rest, **more):
        if host == "store.test":
            answered.wait(60)
        return resolve("127.0.0.1" if host == "store.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    short = dataclasses.replace(fast, store_seconds=0.2, storing_seconds=0.3)
    own = S3Store(dataclasses.replace(short, s3_endpoint_url=f"http://store.test:{fast.s3_endpoint_url[-5:]}"))
    own._conditional = True
    render_loop = make_render_loop(short, store=own, exit_process=exits.append)
    job_id = submit(database, fast, mugs(2))
    try:
        render_loop.run()
        until(lambda: exits, seconds=10)
        assert exits[0] == exit_codes.STORE_HANGS
        assert counts(database, job_id) == {"queued": 2}
    finally:
        answered.set()
    make_render_loop(worker="worker-2").run()
    assert counts(database, job_id) == {"done": 2}
