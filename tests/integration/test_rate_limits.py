"""Rate limits: one bucket in Redis for all servers, each server's own while Redis is away, and the answers' headers."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from services.core.settings import Settings
from services.core.tenants.rate_limits import RateLimits
from tests.web import Api, serving

AWAY = "redis://:secret@127.0.0.1:9"


@pytest.fixture
def limited(api: Api) -> str:
    """A key of a tenant with a limit of two requests a second."""
    time.sleep(1.1)  # the test before may have emptied the bucket of a tenant with the same number
    _, key = api.new_tenant("other")
    answer = api.http.patch("/v1/tenants/other", json={"quotas": {"requests_per_second": 2}})
    assert answer.status_code == 200, answer.text
    return key


def many(url: str, key: str, count: int) -> list[httpx.Response]:
    headers = {"Authorization": f"Bearer {key}"}
    with (
        httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as http,
        ThreadPoolExecutor(8) as pool,
    ):
        return list(pool.map(lambda _: http.get("/v1/usage"), range(count)))


def test_what_comes_too_fast_is_429_with_when_to_come_again(api: Api, limited: str) -> None:
    began = time.monotonic()
    answers = many(api.url, limited, 30)
    most = 2 + 2 * (time.monotonic() - began) + 1
    taken = [answer for answer in answers if answer.status_code == 200]
    assert 2 <= len(taken) <= most
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limited"
    assert refused.json()["error"]["message"] == (
        "Your tenant may send 2 requests a second and sends more; try again in 1 s."
    )
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["RateLimit"] == '"tenant";r=0;t=1'
    for answer in answers:
        assert answer.headers["RateLimit-Policy"] == '"tenant";q=2;w=1'
    assert taken[0].headers["RateLimit"].startswith('"tenant";r=')
    time.sleep(1.1)
    assert many(api.url, limited, 1)[0].status_code == 200


def test_a_tenant_without_a_limit_has_none_and_no_headers_of_one(api: Api) -> None:
    answers = many(api.url, api.key, 20)
    assert {answer.status_code for answer in answers} == {200}
    assert not any("RateLimit" in answer.headers for answer in answers)


def test_one_tenants_limit_is_no_others(api: Api, limited: str) -> None:
    _, key = api.new_tenant("third")
    api.http.patch("/v1/tenants/third", json={"quotas": {"requests_per_second": 2}})
    many(api.url, limited, 10)
    assert many(api.url, key, 1)[0].status_code == 200


def test_two_servers_share_one_bucket_and_without_redis_each_has_its_own(
    api: Api, limited: str, settings: Settings
) -> None:
    with serving(settings) as other:
        began = time.monotonic()
        answers = [answer for url in (api.url, other) for answer in many(url, limited, 15)]
        shared = sum(answer.status_code == 200 for answer in answers)
        assert shared <= 2 + 2 * (time.monotonic() - began) + 1
    with serving(dataclasses.replace(settings, redis_url=AWAY)) as alone:
        began = time.monotonic()
        answers = many(alone, limited, 30)
        passed = time.monotonic() - began
    taken = sum(answer.status_code == 200 for answer in answers)
    assert 2 <= taken <= 2 + 2 * passed + 1
    assert any(answer.status_code == 429 for answer in answers)


@pytest.mark.parametrize("away", [False, True])
def test_the_buckets_of_redis_and_of_a_server_fill_by_the_same_rule(settings: Settings, away: bool) -> None:
    limits = RateLimits(AWAY if away else settings.redis_url)
    tenant = 900_001 + away
    first = [limits.take(tenant, 4.0) for _ in range(5)]
    assert [taken.allowed for taken in first] == [True] * 4 + [False]
    assert [taken.limit for taken in first] == [4] * 5
    assert 0 < first[-1].wait <= 0.25
    time.sleep(first[-1].wait + 0.02)
    assert [limits.take(tenant, 4.0).allowed for _ in range(2)] == [True, False]
    slow = limits.take(tenant + 10, 0.1)
    assert slow.allowed and 9 < slow.wait <= 10
    assert not limits.take(tenant + 10, 0.1).allowed


def test_redis_that_is_away_is_not_asked_for_every_request() -> None:
    limits = RateLimits(AWAY)
    began = time.monotonic()
    for _ in range(1_000):
        limits.take(1, 1e6)
    assert limits.take(1, 1e6).allowed
    asked = time.monotonic() - began
    limits._asked_again_at = 0.0  # it is time to ask again
    limits.take(1, 1e6)
    assert limits._asked_again_at > 0
    assert asked < 60
