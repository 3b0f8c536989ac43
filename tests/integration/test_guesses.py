"""Whoever sends wrong keys is soon answered without a look into the database, and nobody else is."""

import secrets
import string
from collections import Counter

import httpx
import pytest

from services.api.errors import ApiError
from services.api.guesses import AT_ONCE, Guesses
from tests.web import Api

LETTERS = string.ascii_letters + string.digits


def some_key() -> str:
    return "pw_" + "_".join("".join(secrets.choice(LETTERS) for _ in range(length)) for length in (8, 43))


def ask(api: Api, key: str) -> httpx.Response:
    return httpx.get(f"{api.url}/v1/jobs", headers={"Authorization": f"Bearer {key}"})


def test_hundreds_of_wrong_keys_are_refused_alike_and_then_unread_while_a_right_key_goes_on(api: Api) -> None:
    assert ask(api, api.key).status_code == 200
    answers = [ask(api, some_key()) for _ in range(300)]
    first, rest = answers[:AT_ONCE], answers[AT_ONCE:]
    assert {(answer.status_code, answer.text) for answer in first} == {(401, first[0].text)}
    counts = Counter(answer.status_code for answer in rest)
    assert counts[401] < AT_ONCE, "at most one more a second"
    assert counts[429] == len(rest) - counts[401] > 0
    last = next(answer for answer in reversed(rest) if answer.status_code == 429)
    assert last.json()["error"]["code"] == "too_many_wrong_keys"
    assert int(last.headers["retry-after"]) >= 1
    assert ask(api, api.key).status_code == 200
    assert httpx.get(f"{api.url}/v1/jobs", headers={"Authorization": "Bearer nonsense"}).status_code == 401
    form = httpx.get(f"{api.url}/sign-in")
    assert form.status_code in (200, 404), "signing in is not closed by guesses"


def test_guesses_come_back_one_a_second_and_each_address_has_its_own() -> None:
    now = [0.0]
    guesses = Guesses(lambda: now[0])
    for _ in range(AT_ONCE):
        guesses.admit("203.0.113.7", "pw_wrong")
        guesses.wrong("203.0.113.7", "pw_wrong")
    with pytest.raises(ApiError) as refused:
        guesses.admit("203.0.113.7", "pw_wrong")
    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"] == "1"
    guesses.admit("203.0.113.8", "pw_wrong")
    now[0] = 1.0
    guesses.admit("203.0.113.7", "pw_wrong")
    guesses.wrong("203.0.113.7", "pw_wrong")
    with pytest.raises(ApiError):
        guesses.admit("203.0.113.7", "pw_wrong")
    guesses.right("pw_right")
    guesses.admit("203.0.113.7", "pw_right")


def test_addresses_and_keys_that_are_remembered_are_bounded() -> None:
    guesses = Guesses()
    for number in range(12_000):
        guesses.wrong(f"address {number}", "pw_wrong")
        guesses.right(f"key {number}")
    assert len(guesses._left) == len(guesses._right) == 10_000


def test_a_network_of_ipv6_addresses_guesses_as_one_and_its_neighbour_does_not() -> None:
    guesses = Guesses(lambda: 0.0)
    for number in range(AT_ONCE):
        guesses.wrong(f"2001:db8:0:1::{number:x}", "pw_wrong")
    with pytest.raises(ApiError):
        guesses.admit("2001:db8:0:1:ffff::1", "pw_wrong")
    guesses.admit("2001:db8:0:2::1", "pw_wrong")
    for _ in range(AT_ONCE):
        guesses.wrong("::ffff:203.0.113.7", "pw_wrong")
    guesses.admit("::ffff:203.0.113.8", "pw_wrong")


def test_a_key_that_was_revoked_is_a_guess_like_any_other() -> None:
    guesses = Guesses(lambda: 0.0)
    guesses.right("pw_right")
    for _ in range(AT_ONCE):
        guesses.wrong("203.0.113.7", "pw_wrong")
    guesses.admit("203.0.113.7", "pw_right")
    guesses.wrong("203.0.113.7", "pw_right")
    with pytest.raises(ApiError):
        guesses.admit("203.0.113.7", "pw_right")
