"""Readiness: no look keeps another request waiting, and what takes no writes is not ready."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis

from services.local.stack import Stack
from tests.proxy import Proxy
from tests.waiting import until
from tests.web import Api, serving

MANY = 60


@pytest.fixture
def variant(api: Api) -> Iterator[Callable[..., str]]:
    """The API again, with other settings; its address."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(serving(dataclasses.replace(api.settings, **changes)))


def ready(url: str) -> tuple[int, dict[str, str]]:
    answer = httpx.get(f"{url}/readyz", timeout=30, trust_env=False)
    return answer.status_code, {name: check["status"] for name, check in answer.json()["checks"].items()}


def test_many_that_ask_during_a_look_that_hangs_keep_nobody_waiting(api: Api, variant: Callable[..., str]) -> None:
    """Each of them would take one of the server's forty threads."""
    store = urlsplit(api.settings.s3_endpoint_url)
    proxy = Proxy(str(store.hostname), store.port or 80, delay=3600)
    url = variant(s3_endpoint_url=f"http://127.0.0.1:{proxy.port}")
    with (
        httpx.Client(base_url=url, headers=api.http.headers, trust_env=False) as http,
        ThreadPoolExecutor(MANY) as pool,
    ):
        asked = [pool.submit(ready, url) for _ in range(MANY)]
        submitted = http.post("/v1/jobs", json={"images": [{"prompt": "a mug"}]}, timeout=5)
        assert submitted.status_code == 202
        for answer in asked:
            assert answer.result()[0] == 503
            assert answer.result()[1] | {"store": "failing"} == answer.result()[1]
        assert http.get("/readyz").json()["checks"]["database"]["status"] == "ok"
    assert proxy.accepted == 1
    proxy.close()


def test_an_answer_says_how_old_it_is(api: Api) -> None:
    assert 0 <= api.http.get("/readyz").json()["age_seconds"] <= 15


def test_a_store_that_takes_no_writes_is_not_ready(api: Api, variant: Callable[..., str]) -> None:
    store = urlsplit(api.settings.s3_endpoint_url)
    proxy = Proxy(str(store.hostname), store.port or 80, refused=b"PUT ")
    status, checks = ready(variant(s3_endpoint_url=f"http://127.0.0.1:{proxy.port}"))
    assert (status, checks["store"], checks["database"]) == (503, "failing", "ok")
    proxy.close()


def test_a_redis_that_takes_no_writes_is_degraded(api: Api, stack: Stack, variant: Callable[..., str]) -> None:
    admin = redis.Redis.from_url(stack.admin["REDIS_URL"])
    admin.acl_setuser("reader", enabled=True, passwords=["+word"], keys=["*"], categories=["+@all", "-@write"])
    try:
        parts = urlsplit(api.settings.redis_url)
        url = variant(redis_url=f"redis://reader:word@{parts.hostname}:{parts.port}/0")
        until(lambda: ready(url) == (200, ready(api.url)[1] | {"redis": "degraded"}))
    finally:
        admin.acl_deluser("reader")
        admin.close()


def test_a_database_that_takes_no_writes_is_not_ready(
    api: Api, stack: Stack, database_url: str, variant: Callable[..., str]
) -> None:
    name = database_url.rpartition("/")[2]
    admin = f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    url = variant()
    answer = httpx.get(f"{url}/readyz", timeout=30, trust_env=False)
    assert answer.status_code == 503
    assert answer.json()["checks"]["database"] == {
        "status": "failing", "message": "The database takes no writes right now.",
    }  # fmt: skip
